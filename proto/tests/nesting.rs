//! Messages that are nested without end are refused, and cost little stack.

use prost::Message;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tulle_proto::ca::IstioCertificateRequest;

const LEVELS: usize = 100_000;

/// A list in a list in a list, so many times, as the value of a field.
fn nested(levels: usize) -> Vec<u8> {
    let list = |values| Value {
        kind: Some(Kind::ListValue(ListValue { values })),
    };
    // What a list of one value begins with, for a value of any length, is written from the inside out, backwards.
    let mut backwards: Vec<u8> = list(vec![]).encode_to_vec().into_iter().rev().collect();
    for _ in 0..levels {
        for tag in [0x0a, 0x32] {
            let mut length = Vec::new();
            prost::encoding::encode_varint(backwards.len() as u64, &mut length);
            backwards.extend(length.into_iter().rev());
            backwards.push(tag);
        }
    }
    backwards.reverse();
    backwards
}

#[test]
fn the_bytes_are_what_they_are_meant_to_be() {
    let read = Value::decode(&nested(2)[..]).unwrap();
    let depth = |mut value: &Value| {
        let mut depth = 0;
        while let Some(Kind::ListValue(list)) = &value.kind {
            depth += 1;
            match list.values.first() {
                Some(inner) => value = inner,
                None => break,
            }
        }
        depth
    };
    assert_eq!(depth(&read), 3);
}

#[test]
fn r109_messages_of_any_depth_are_refused_on_a_small_stack() {
    let reading = || {
        let value = nested(LEVELS);
        assert!(Value::decode(&value[..]).is_err());
        // The same as the metadata of a request that anybody may send.
        let mut field = Vec::new();
        prost::encoding::encode_varint(value.len() as u64, &mut field);
        let entry = [&[0x0a, 1, b'a', 0x12][..], &field, &value].concat();
        let mut metadata = vec![0x0a];
        prost::encoding::encode_varint(entry.len() as u64, &mut metadata);
        metadata.extend(entry);
        assert!(Struct::decode(&metadata[..]).is_err());
        let mut request = vec![4 << 3 | 2];
        prost::encoding::encode_varint(metadata.len() as u64, &mut request);
        request.extend(metadata);
        assert!(IstioCertificateRequest::decode(&request[..]).is_err());
    };
    let thread = std::thread::Builder::new().stack_size(256 * 1024);
    thread.spawn(reading).unwrap().join().unwrap();
}
