//! A new id for a request that brings none.

use http::header::HeaderValue;

/// A UUID of version 4, made of a random number.
#[must_use]
pub fn fresh(random: u128) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let number = (random & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    let mut digits = number
        .to_be_bytes()
        .into_iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf]);
    let id: [u8; 36] = std::array::from_fn(|position| match position {
        8 | 13 | 18 | 23 => b'-',
        _ => HEX[usize::from(digits.next().unwrap_or_default())],
    });
    HeaderValue::from_bytes(&id).expect("hexadecimal digits and dashes are a header value")
}

#[cfg(test)]
mod tests {
    use super::fresh;

    #[test]
    fn an_id_says_its_version_and_variant() {
        assert_eq!(fresh(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(fresh(0), "00000000-0000-4000-8000-000000000000");
    }
}
