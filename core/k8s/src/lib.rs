//! Slim Kubernetes objects and their translation to the model.

pub mod api;
pub mod document;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod object;
pub mod schema;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod translate;

pub use object::{Key, Kind, Object};
