//! The records of RFC 8448, section 3, that follow its handshake.

use super::super::key::Suite;
use super::*;

/// What each side sends: bytes 0 to 49, and close_notify.
struct Trace {
    /// What its key and vector are made from.
    secret: &'static str,
    /// Records that the key had sealed before.
    before: u64,
    data: &'static str,
    close: &'static str,
}

const CLIENT: Trace = Trace {
    secret: "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
    before: 0,
    data: "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a\
           6292a2977014bd1e3deae63aeebb21694915e4",
    close: "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3",
};

/// Its first record was a ticket.
const SERVER: Trace = Trace {
    secret: "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
    before: 1,
    data: "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2\
           e5f0a21c0047c2abf332540dd032e167c2955d",
    close: "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9",
};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .map(|digit| u8::try_from(digit).unwrap())
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

impl Trace {
    fn key(&self) -> Key {
        Key::of(Suite::Aes128Gcm, &bytes(self.secret), self.before).unwrap()
    }
}

#[test]
fn our_records_are_those_of_the_trace() {
    let payload: Vec<u8> = (0..50).collect();
    for (own, other) in [(CLIENT, SERVER), (SERVER, CLIENT)] {
        let now = Instant::now();
        let mut session = Session::with(own.key(), other.key(), RECORDS_PER_KEY, now);
        assert_eq!(seal(&mut session, &[&payload], ROOM), bytes(own.data));
        session.close();
        assert_eq!(seal(&mut session, &[], ROOM), bytes(own.close));
        let records = [bytes(other.data), bytes(other.close)].concat();
        assert_eq!(open(&mut session, &records, 7, now), payload);
        assert_eq!(session.end(), Some(&Ok(())));
    }
}
