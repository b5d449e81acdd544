//! The strictest reader of HTTP/1.1 there is: everything that is not as the grammar says is malformed.

/// One request as it arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) body: String,
    /// Names in lower case, and values.
    pub(crate) fields: Vec<(String, String)>,
    /// What is wrong with it.
    pub(crate) malformed: Option<String>,
}

/// Bytes that are not yet a request.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// The requests that are whole now.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Seen> {
        self.bytes.extend_from_slice(bytes);
        let mut requests = Vec::new();
        while let Some((request, length)) = parse(&self.bytes) {
            self.bytes.drain(..length);
            let malformed = request.malformed.is_some();
            requests.push(request);
            if malformed {
                self.bytes.clear();
            }
        }
        requests
    }
}

/// The first request, if it is whole, and its length.
fn parse(bytes: &[u8]) -> Option<(Seen, usize)> {
    let end = find(bytes, b"\r\n\r\n")?;
    match head(&bytes[..end]) {
        Ok((mut seen, framing)) => {
            let rest = &bytes[end + 4..];
            let (body, length) = match framing {
                Framing::None => (Vec::new(), 0),
                Framing::Length(length) => (rest.get(..length)?.to_vec(), length),
                Framing::Chunked => chunks(rest)?,
            };
            seen.body = String::from_utf8_lossy(&body).into_owned();
            Some((seen, end + 4 + length))
        }
        Err(malformed) => {
            let seen = Seen {
                malformed: Some(malformed),
                ..Seen::default()
            };
            Some((seen, bytes.len()))
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

enum Framing {
    None,
    Length(usize),
    Chunked,
}

fn head(bytes: &[u8]) -> Result<(Seen, Framing), String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "the head is no text".to_owned())?;
    let lines: Vec<&str> = text.split("\r\n").collect();
    if lines.iter().any(|line| line.contains(['\r', '\n', '\0'])) {
        return Err("a bare line end".to_owned());
    }
    let parts: Vec<&str> = lines[0].split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts.as_slice() else {
        return Err(format!("the first line {:?}", lines[0]));
    };
    if !target.starts_with('/') && *target != "*" {
        return Err(format!("the target {target}"));
    }
    let mut fields = Vec::new();
    for line in &lines[1..] {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("the line {line:?}"))?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            return Err(format!("the name {name:?}"));
        }
        fields.push((
            name.to_ascii_lowercase(),
            value.trim_matches([' ', '\t']).to_owned(),
        ));
    }
    let of = |wanted: &str| {
        fields
            .iter()
            .filter(|(name, _)| name == wanted)
            .map(|(_, value)| value.clone())
            .collect::<Vec<_>>()
    };
    let (hosts, lengths, codings) = (of("host"), of("content-length"), of("transfer-encoding"));
    let [host] = hosts.as_slice() else {
        return Err(format!("the hosts {hosts:?}"));
    };
    let framing = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Framing::None,
        ([length], []) => Framing::Length(length.parse().map_err(|_| format!("the length {length}"))?),
        ([], [coding]) if coding == "chunked" => Framing::Chunked,
        other => return Err(format!("the framing {other:?}")),
    };
    let seen = Seen {
        method: (*method).to_owned(),
        target: (*target).to_owned(),
        host: host.clone(),
        fields: fields.clone(),
        ..Seen::default()
    };
    Ok((seen, framing))
}

/// The body in chunks without extensions and trailers, if it is whole, and its length with them.
fn chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        at += line + 2;
        let chunk = bytes.get(at..at + size)?;
        body.extend_from_slice(chunk);
        if bytes.get(at + size..at + size + 2)? != b"\r\n" {
            return None;
        }
        at += size + 2;
        if size == 0 {
            return Some((body, at));
        }
    }
}
