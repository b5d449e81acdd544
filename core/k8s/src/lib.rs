//! Slim Kubernetes objects and their translation to the model.

pub mod api;
pub mod document;
pub mod object;
pub mod schema;
pub mod translate;

pub use object::{Key, Kind, Object};
