//! Changes header fields: set, then add, then remove.

use http::{HeaderMap, HeaderName, HeaderValue};
use tulle_model::Str;
use tulle_model::filter::{Header, HeaderMod};
use tulle_model::request::reserved::is_untouchable;

/// Why a change of headers cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    /// The name is none, or the value is none.
    #[error("`{0}` is no name of a header, or its value is none")]
    NotAHeader(Str),
    /// The field frames a message, belongs to one hop or to the mesh.
    #[error("the header {0} may not be changed")]
    Untouchable(Str),
}

/// Changes of header fields, ready to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl Headers {
    /// Reads names and values.
    ///
    /// # Errors
    /// If one of them is none, or may not be touched.
    pub fn compile(of: &HeaderMod) -> Result<Self, HeadersError> {
        let fields = |of: &[Header]| of.iter().map(field).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            set: fields(&of.set)?,
            add: fields(&of.add)?,
            remove: of.remove.iter().map(name).collect::<Result<_, _>>()?,
        })
    }

    /// Makes the changes.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

fn name(of: &Str) -> Result<HeaderName, HeadersError> {
    let name = HeaderName::from_bytes(of.as_bytes()).map_err(|_| HeadersError::NotAHeader(of.clone()))?;
    if is_untouchable(name.as_str()) {
        return Err(HeadersError::Untouchable(of.clone()));
    }
    Ok(name)
}

fn field(of: &Header) -> Result<(HeaderName, HeaderValue), HeadersError> {
    let value = HeaderValue::from_str(&of.value).map_err(|_| HeadersError::NotAHeader(of.name.clone()))?;
    Ok((name(&of.name)?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> Header {
        Header {
            name: name.into(),
            value: value.into(),
        }
    }

    #[test]
    fn fields_are_set_then_added_then_removed() {
        let of = HeaderMod {
            set: vec![header("X-Set", "new"), header("x-both", "1")],
            add: vec![header("x-add", "2"), header("x-both", "2"), header("x-gone", "2")],
            remove: vec!["X-Gone".into(), "x-never".into()],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-set", "a"), ("x-set", "b"), ("x-add", "1"), ("x-gone", "1")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        Headers::compile(&of).unwrap().apply(&mut headers);
        let values = |name| headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(values("x-set"), ["new"]);
        assert_eq!(values("x-add"), ["1", "2"]);
        assert_eq!(values("x-both"), ["1", "2"]);
        assert!(values("x-gone").is_empty());
    }

    #[test]
    fn what_frames_a_message_or_is_the_mesh_s_own_is_not_touched() {
        for name in [
            "Host",
            "content-length",
            "transfer-encoding",
            "te",
            "x-envoy-x",
            "x-forwarded-for",
        ] {
            for of in [
                HeaderMod {
                    set: vec![header(name, "1")],
                    ..HeaderMod::default()
                },
                HeaderMod {
                    remove: vec![name.into()],
                    ..HeaderMod::default()
                },
            ] {
                assert_eq!(Headers::compile(&of), Err(HeadersError::Untouchable(name.into())));
            }
        }
    }

    #[test]
    fn values_cannot_begin_another_field() {
        let of = HeaderMod {
            set: vec![header("x", "a\r\nhost: b")],
            ..HeaderMod::default()
        };
        assert_eq!(Headers::compile(&of), Err(HeadersError::NotAHeader("x".into())));
    }
}
