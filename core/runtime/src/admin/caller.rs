//! Who is at the other end of the admin socket, as the kernel says it.

use std::convert::Infallible;
use std::fmt;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;

/// The user of a process that has connected to the unix socket; a page takes it as an argument. Over TCP nobody is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    uid: Option<u32>,
}

impl Caller {
    /// This user; `None` where the kernel does not say.
    #[must_use]
    pub fn of(uid: Option<u32>) -> Self {
        Self { uid }
    }

    /// The caller, and what the request says of it beside that, if it says anything else.
    #[must_use]
    pub fn saying(self, said: &str) -> String {
        let own = self.to_string();
        match said.trim() {
            said if said.is_empty() || said == own => own,
            said => format!("{own} ({said})"),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "uid {uid}"),
            None => f.write_str("unknown user"),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let known = parts.extensions.get::<ConnectInfo<Self>>();
        Ok(known.map_or_else(Self::default, |ConnectInfo(caller)| *caller))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_says_of_its_caller_stands_beside_what_is_known() {
        let caller = Caller::of(Some(1000));
        for said in ["", " ", "uid 1000"] {
            assert_eq!(caller.saying(said), "uid 1000");
        }
        assert_eq!(caller.saying("uid 0"), "uid 1000 (uid 0)");
        assert_eq!(Caller::default().saying("alice"), "unknown user (alice)");
    }
}
