//! What ends a connection because of what the peer sent.

use super::wire::code;

/// An error of the whole connection: GOAWAY with this code, and the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2 error {code}: {what}")]
pub(super) struct Fault {
    pub(super) code: u32,
    pub(super) what: &'static str,
}

impl Fault {
    pub(super) const fn connection(code: u32, what: &'static str) -> Self {
        Self { code, what }
    }

    pub(super) const fn protocol(what: &'static str) -> Self {
        Self::connection(code::PROTOCOL_ERROR, what)
    }

    pub(super) const fn size(what: &'static str) -> Self {
        Self::connection(code::FRAME_SIZE_ERROR, what)
    }

    pub(super) const fn flow(what: &'static str) -> Self {
        Self::connection(code::FLOW_CONTROL_ERROR, what)
    }

    pub(super) const fn calm(what: &'static str) -> Self {
        Self::connection(code::ENHANCE_YOUR_CALM, what)
    }
}
