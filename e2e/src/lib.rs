//! Harness of the whole-system tests: starts the real programs, sends real traffic, and cleans up after itself.

pub mod app;
pub mod cluster;
pub mod dashboards;
pub mod lan;
pub mod mesh;
pub mod process;
pub mod resolver;
pub mod reviews;
