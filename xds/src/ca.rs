//! The certificate authority: who may have which identity, and the certificate that says so.

pub mod authorize;
pub mod issue;
pub mod root;
