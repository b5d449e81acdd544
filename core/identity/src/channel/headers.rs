//! Headers that every request to a server of the control plane carries.

use std::fmt;

use http::{HeaderName, HeaderValue};
use serde::{Serialize, Serializer};
use tulle_runtime::config::Collector;

/// Names and values. Where they are shown, only the names are: a value may be a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Every variable of the prefix; the rest of its name is the header's.
    pub fn read(read: &mut Collector<'_>, prefix: &str) -> Self {
        let mut headers = Vec::new();
        for (variable, value) in read.with_prefix(prefix) {
            match parse(&variable[prefix.len()..], &value) {
                Ok(name) => headers.push((name, value)),
                Err(message) => read.problem(&variable, "<hidden>", message),
            }
        }
        Self(headers)
    }

    /// Names and values, to be sent.
    #[must_use]
    pub fn to_vec(&self) -> Vec<(String, String)> {
        self.0.clone()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

/// The name as it is sent. gRPC keeps `-bin` for bytes, and takes printable ASCII alone for the rest.
fn parse(name: &str, value: &str) -> Result<String, &'static str> {
    let name = HeaderName::try_from(name).map_err(|_| "the rest of its name is no name of a header")?;
    if name.as_str().ends_with("-bin") {
        return Err("headers of bytes cannot be set");
    }
    let value = HeaderValue::try_from(value);
    if value.is_ok_and(|value| value.to_str().is_ok()) {
        return Ok(name.to_string());
    }
    Err("must be printable ASCII")
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.names())
    }
}
