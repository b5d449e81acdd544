//! HPACK by the examples of RFC 7541, and by what must be refused.

use super::*;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let text: String = text.split_whitespace().collect();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<String, Malformed> {
    let mut text = String::new();
    decoder.decode(block, 65_536, |name, value| {
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        text.push_str(&format!("{name}: {value}\n"));
    })?;
    Ok(text)
}

const FIRST: &str = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n";

/// C.3 and C.4: three requests on one connection, without and with Huffman codes.
#[test]
fn the_requests_of_the_rfc_are_understood() {
    let plain = [
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ];
    let coded = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ];
    for blocks in [plain, coded] {
        let mut decoder = Decoder::default();
        assert_eq!(decode(&mut decoder, &hex(blocks[0])).unwrap(), FIRST);
        assert_eq!(
            decode(&mut decoder, &hex(blocks[1])).unwrap(),
            format!("{FIRST}cache-control: no-cache\n")
        );
        assert_eq!(
            decode(&mut decoder, &hex(blocks[2])).unwrap(),
            ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value\n"
        );
        assert_eq!((decoder.size, decoder.entries.len()), (164, 3));
    }
}

/// C.5, with the table of 256 bytes that it speaks of.
#[test]
fn old_entries_leave_the_table() {
    let mut decoder = Decoder::default();
    let first = hex(
        "3fe101 4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54
         6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
    );
    decode(&mut decoder, &first).unwrap();
    assert_eq!((decoder.size, decoder.entries.len()), (222, 4));
    let second = decode(&mut decoder, &hex("4803333037c1c0bf")).unwrap();
    assert_eq!(
        second,
        ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com\n"
    );
    assert_eq!((decoder.size, decoder.entries.len()), (222, 4));
}

#[test]
fn what_is_no_block_is_refused() {
    let wrong: [&[u8]; 11] = [
        &[0x80],
        &[0xc0],
        &[0x7f],
        &[0x00, 0x05, b'a'],
        &[0x00, 0x01],
        &[0x00, 0x01, b'a', 0x81, 0x00],
        &[0x82, 0x20],
        &[0x3f, 0xe2, 0x1f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
        &[0x01, 0x7f],
    ];
    for block in wrong {
        assert!(decode(&mut Decoder::default(), block).is_err(), "{block:x?}");
    }
}

#[test]
fn a_list_that_is_too_long_is_not_handed_on_and_does_not_break_the_table() {
    let mut decoder = Decoder::default();
    let mut block = b"\x40\x01a\x04long".to_vec();
    block.extend([0xbe; 100]);
    let mut seen = 0;
    assert_eq!(decoder.decode(&block, 100, |_, _| seen += 1), Ok(false));
    assert_eq!(seen, 2, "37 bytes each");
    assert_eq!(decode(&mut decoder, &[0xbe]).unwrap(), "a: long\n");
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(headers in proptest::collection::vec(("[a-z-]{1,20}", "[ -~]{0,300}"), 0..10)) {
        let mut encoder = Encoder::new();
        encoder.ok();
        headers.iter().for_each(|(name, value)| encoder.header(name, value.as_bytes()));
        let expect: String = std::iter::once((":status".to_owned(), "200".to_owned()))
            .chain(headers)
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect();
        prop_assert_eq!(decode(&mut Decoder::default(), &encoder.finish()).unwrap(), expect);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused_and_the_table_is_bounded(blocks: Vec<Vec<u8>>) {
        let mut decoder = Decoder::default();
        for block in blocks {
            let _ = decode(&mut decoder, &block);
            prop_assert!(decoder.size <= decoder.size_max && decoder.size_max <= TABLE_MAX);
            prop_assert_eq!(decoder.size, decoder.entries.iter().map(Entry::size).sum::<usize>());
        }
    }
}
