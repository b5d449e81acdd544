//! What an authorizer changes of a request that may pass, and of its answer.

use http::{HeaderMap, HeaderName, HeaderValue};
use tulle_model::request::reserved::is_untouchable;

/// Changes, in the order in which they are made. None touches what the mesh needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    request: Vec<Change>,
    response: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Set(HeaderName, HeaderValue),
    SetIfThere(HeaderName, HeaderValue),
    AddIfAbsent(HeaderName, HeaderValue),
    Append(HeaderName, HeaderValue),
    Remove(HeaderName),
}

/// How a field meets one of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It takes its place.
    Set,
    /// It takes its place, and is left out if there is none.
    SetIfThere,
    /// It is left out.
    AddIfAbsent,
    /// It stands beside it.
    Append,
}

/// Most changes of one answer.
const CHANGES_MAX: usize = 128;

impl Changes {
    /// Changes a field of the request.
    pub fn on_request(&mut self, how: How, name: &str, value: &[u8]) {
        push(&mut self.request, how, name, value);
    }

    /// Changes a field of the answer.
    pub fn on_response(&mut self, how: How, name: &str, value: &[u8]) {
        push(&mut self.response, how, name, value);
    }

    /// Takes a field out of the request.
    pub fn remove_from_request(&mut self, name: &str) {
        if let Some(name) = touchable(name)
            && self.request.len() < CHANGES_MAX
        {
            self.request.push(Change::Remove(name));
        }
    }

    /// Whether nothing of the request is changed.
    #[must_use]
    pub fn leave_request(&self) -> bool {
        self.request.is_empty()
    }

    /// Changes what goes upstream.
    pub fn apply_to_request(&self, headers: &mut HeaderMap) {
        apply(&self.request, headers);
    }

    /// Changes what goes back.
    pub fn apply_to_response(&self, headers: &mut HeaderMap) {
        apply(&self.response, headers);
    }

    /// Both, one after the other.
    pub fn extend(&mut self, other: Self) {
        self.request.extend(other.request);
        self.response.extend(other.response);
    }
}

fn touchable(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    (!is_untouchable(name.as_str())).then_some(name)
}

fn push(list: &mut Vec<Change>, how: How, name: &str, value: &[u8]) {
    let (Some(name), Ok(value)) = (touchable(name), HeaderValue::from_bytes(value)) else {
        return;
    };
    if list.len() < CHANGES_MAX {
        list.push(match how {
            How::Set => Change::Set(name, value),
            How::SetIfThere => Change::SetIfThere(name, value),
            How::AddIfAbsent => Change::AddIfAbsent(name, value),
            How::Append => Change::Append(name, value),
        });
    }
}

fn apply(changes: &[Change], headers: &mut HeaderMap) {
    for change in changes {
        match change {
            Change::Set(name, value) => drop(headers.insert(name, value.clone())),
            Change::SetIfThere(name, value) => {
                if headers.contains_key(name) {
                    headers.insert(name, value.clone());
                }
            }
            Change::AddIfAbsent(name, value) => {
                if !headers.contains_key(name) {
                    headers.insert(name, value.clone());
                }
            }
            Change::Append(name, value) => drop(headers.append(name, value.clone())),
            Change::Remove(name) => drop(headers.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_meet_as_told_and_those_of_the_mesh_stay() {
        let mut changes = Changes::default();
        changes.on_request(How::Set, "x-a", b"new");
        changes.on_request(How::Append, "x-b", b"2");
        changes.on_request(How::AddIfAbsent, "x-b", b"3");
        changes.on_request(How::SetIfThere, "x-none", b"4");
        changes.on_request(How::Set, "x-tulle-source", b"forged");
        changes.on_request(How::Set, "host", b"other");
        changes.remove_from_request("x-c");
        changes.remove_from_request("content-length");
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-a", "old"),
            ("x-b", "1"),
            ("x-c", "c"),
            ("content-length", "3"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        changes.apply_to_request(&mut headers);
        let mut left: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(left, ["content-length=3", "x-a=new", "x-b=1", "x-b=2"]);
    }
}
