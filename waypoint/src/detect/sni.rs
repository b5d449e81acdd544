//! The server name of a TLS ClientHello, read without TLS: bounded, over any number of records.

/// Bytes of a ClientHello that are looked at, record headers included.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;
/// Longest host name there is.
const NAME_BYTES_MAX: usize = 253;
/// Content type of a record that carries a handshake.
const HANDSHAKE: u8 = 22;
/// Type of the handshake message.
const CLIENT_HELLO: u8 = 1;
/// Extension with the server name.
const SERVER_NAME: u16 = 0;
/// Kind of name that is a host's.
const HOST_NAME: u8 = 0;

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// For this server, in lower case.
    Named(String),
    /// For whichever server there is.
    Unnamed,
    /// It is no ClientHello, or too long a one.
    NotTls,
    /// It is not complete.
    More,
}

/// Reads what has arrived so far.
#[must_use]
pub fn read(bytes: &[u8]) -> Hello {
    let message = match handshake(bytes) {
        Ok(message) => message,
        Err(other) => return other,
    };
    match hello(&message) {
        Some(found) => found,
        None => Hello::NotTls,
    }
}

/// The first handshake message, put together out of its records.
fn handshake(mut bytes: &[u8]) -> Result<Vec<u8>, Hello> {
    let too_long = bytes.len() > HELLO_BYTES_MAX;
    let more = if too_long { Hello::NotTls } else { Hello::More };
    let mut message = Vec::new();
    loop {
        if let [kind, length @ ..] = &message[..]
            && let [high, middle, low, body @ ..] = length
        {
            if *kind != CLIENT_HELLO {
                return Err(Hello::NotTls);
            }
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            if length > HELLO_BYTES_MAX {
                return Err(Hello::NotTls);
            }
            if body.len() >= length {
                return Ok(body[..length].to_vec());
            }
        }
        match bytes {
            [kind, ..] if *kind != HANDSHAKE => return Err(Hello::NotTls),
            [_, major, ..] if *major != 3 => return Err(Hello::NotTls),
            [_, _, _, high, low, rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > HELLO_BYTES_MAX {
                    return Err(Hello::NotTls);
                }
                let Some(fragment) = rest.get(..length) else {
                    return Err(more);
                };
                message.extend_from_slice(fragment);
                bytes = &rest[length..];
            }
            _ => return Err(more),
        }
    }
}

/// The fields of RFC 8446, section 4.1.2, as far as the name; `None` for what breaks them.
fn hello(message: &[u8]) -> Option<Hello> {
    let mut rest = Fields(message);
    rest.take(2 + 32)?;
    let session = rest.number(1)?;
    rest.take(session)?;
    let suites = rest.number(2)?;
    rest.take(suites)?;
    let compressions = rest.number(1)?;
    rest.take(compressions)?;
    if rest.0.is_empty() {
        return Some(Hello::Unnamed);
    }
    let length = rest.number(2)?;
    let mut extensions = Fields(rest.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let length = extensions.number(2)?;
        let body = extensions.take(length)?;
        if kind == usize::from(SERVER_NAME) {
            return name(body);
        }
    }
    Some(Hello::Unnamed)
}

fn name(extension: &[u8]) -> Option<Hello> {
    let mut fields = Fields(extension);
    let length = fields.number(2)?;
    let mut names = Fields(fields.take(length)?);
    while !names.0.is_empty() {
        let kind = names.number(1)?;
        let length = names.number(2)?;
        let name = names.take(length)?;
        if kind == usize::from(HOST_NAME) {
            let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            let usable = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.iter().all(is_host);
            let name = std::str::from_utf8(name).ok().filter(|_| usable)?;
            return Some(Hello::Named(name.to_ascii_lowercase()));
        }
    }
    Some(Hello::Unnamed)
}

/// Bytes that are cut off from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let taken = self.0.get(..bytes)?;
        self.0 = &self.0[bytes..];
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        let taken = self.take(bytes)?;
        Some(
            taken
                .iter()
                .fold(0, |number, byte| number << 8 | usize::from(*byte)),
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A ClientHello for `name`, in records of at most `fragment` bytes.
    pub(crate) fn client_hello(name: Option<&str>, fragment: usize) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
        if let Some(name) = name {
            let length = u16::try_from(name.len()).unwrap();
            extensions.extend([0, 0]);
            extensions.extend((length + 5).to_be_bytes());
            extensions.extend((length + 3).to_be_bytes());
            extensions.push(0);
            extensions.extend(length.to_be_bytes());
            extensions.extend(name.as_bytes());
        }
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        let record = |part: &[u8]| {
            let mut record = vec![22, 3, 1];
            record.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            record.extend(part);
            record
        };
        message.chunks(fragment).flat_map(record).collect()
    }

    #[test]
    fn a_name_is_found_whatever_the_records() {
        for fragment in [1, 5, 40, 4096] {
            let hello = client_hello(Some("Web.Shop"), fragment);
            assert_eq!(read(&hello), Hello::Named("web.shop".into()), "{fragment}");
            for cut in 0..hello.len() {
                assert_eq!(read(&hello[..cut]), Hello::More, "{fragment} {cut}");
            }
        }
    }

    #[test]
    fn what_has_no_name_is_told_from_what_is_no_tls() {
        assert_eq!(read(&client_hello(None, 4096)), Hello::Unnamed);
        assert_eq!(read(b"GET / HTTP/1.1\r\n"), Hello::NotTls);
        assert_eq!(read(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Hello::NotTls);
        assert_eq!(read(&client_hello(Some("a b"), 4096)), Hello::NotTls);
        assert_eq!(read(&[22, 3, 1, 0, 0]), Hello::NotTls);
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
        endless.resize(HELLO_BYTES_MAX, 0);
        assert_eq!(read(&endless), Hello::More);
        endless.push(0);
        assert_ne!(read(&endless), Hello::More);
    }
}
