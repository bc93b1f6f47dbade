//! Traffic splits as people think of them (versions of a service, and shares) and as they are stored (rules of routes with
//! backends). Pure: objects in, edited objects out.

pub mod attached;
pub mod conditions;
pub mod edit;
pub mod shares;
