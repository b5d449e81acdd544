//! The Huffman code of HPACK. It is canonical, so the lengths of RFC 7541, appendix B, say all of it.

/// Bits of each symbol's code; the last one is the end of a string, which never appears.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];

const END: u16 = 256;
const LONGEST: usize = 30;

/// The symbols in the order of their codes, and per length: the first code, how many there are, and where they begin.
struct Code {
    symbols: [u16; 257],
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    begin: [usize; LONGEST + 1],
}

static CODE: Code = build();

#[allow(
    clippy::cast_possible_truncation,
    reason = "256 symbols; no conversions in const functions"
)]
const fn build() -> Code {
    let mut code = Code {
        symbols: [0; 257],
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        begin: [0; LONGEST + 1],
    };
    let (mut next, mut placed, mut length) = (0u32, 0usize, 1usize);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.begin[length] = placed;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                code.symbols[placed] = symbol as u16;
                placed += 1;
                next += 1;
                code.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// The string that `bytes` stand for, unless they are no code or are not padded as they are to be.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() * 2);
    let (mut code, mut length, mut ones) = (0u32, 0usize, true);
    for byte in bytes {
        for bit in (0..8).rev() {
            let bit = u32::from(byte >> bit & 1);
            code = code << 1 | bit;
            length += 1;
            ones &= bit == 1;
            if length > LONGEST {
                return None;
            }
            let offset = code.wrapping_sub(CODE.first[length]);
            if offset < CODE.count[length] {
                let symbol = CODE.symbols[CODE.begin[length] + offset as usize];
                if symbol == END {
                    return None;
                }
                out.push(u8::try_from(symbol).ok()?);
                (code, length, ones) = (0, 0, true);
            }
        }
    }
    // What is left over is the beginning of the code of the end: fewer than eight ones.
    (length < 8 && ones).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The code of `text`, by the rule and not by a table.
    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for byte in text {
            let length = usize::from(LENGTHS[usize::from(*byte)]);
            let begin = CODE.begin[length];
            let place = CODE.symbols[begin..]
                .iter()
                .position(|symbol| *symbol == u16::from(*byte));
            let code = CODE.first[length] + u32::try_from(place.unwrap()).unwrap();
            bits.push_str(&format!("{code:0length$b}"));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let byte = |at: usize| u8::from_str_radix(&bits[at..at + 8], 2).unwrap();
        (0..bits.len()).step_by(8).map(byte).collect()
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(text: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            if let Some(text) = decode(&bytes) {
                prop_assert_eq!(encode(&text), bytes);
            }
        }
    }

    /// RFC 7541, appendix C.4.
    #[test]
    fn the_examples_of_the_rfc_are_understood() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect()
        };
        assert_eq!(
            decode(&hex("f1e3c2e5f23a6ba0ab90f4ff")).unwrap(),
            b"www.example.com"
        );
        assert_eq!(decode(&hex("a8eb10649cbf")).unwrap(), b"no-cache");
        assert_eq!(decode(&hex("25a849e95bb8e8b4bf")).unwrap(), b"custom-value");
        assert_eq!(
            decode(&hex("9d29ad171863c78f0b97c8e9ae82ae43d3")).unwrap(),
            b"https://www.example.com"
        );
    }

    #[test]
    fn padding_is_ones_and_less_than_a_byte() {
        assert_eq!(decode(&[0b0001_1111]).unwrap(), b"a");
        assert_eq!(decode(&[0b0001_1110]), None);
        assert_eq!(decode(&[0b0001_1111, 0xff]), None);
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff]), None, "the end is no symbol");
    }
}
