//! Slim Kubernetes objects and their translation to the model.

pub mod translate;
