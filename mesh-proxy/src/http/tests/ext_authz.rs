//! Somebody else decides about requests, over real sockets.
