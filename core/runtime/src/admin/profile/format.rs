//! The format of profiles that `go tool pprof` reads (its `profile.proto`): texts, functions and places stand in tables
//! and are named by number.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;

/// Where a program counter was: a function, in its file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Frame {
    pub(super) function: String,
    pub(super) file: String,
    pub(super) line: i64,
}

/// A stack, from its innermost place outwards, and how often it was seen. At one place there is a function and what is
/// inlined into it, innermost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stack {
    pub(super) thread: String,
    pub(super) places: Vec<Vec<Frame>>,
    pub(super) samples: i64,
}

/// When and how stacks were taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// Since 1970.
    pub(super) begun: Duration,
    pub(super) length: Duration,
    pub(super) frequency: i32,
}

impl Taken {
    /// The profile.
    pub(super) fn encode(&self, stacks: &[Stack]) -> Vec<u8> {
        self.profile(stacks).encode_to_vec()
    }

    fn profile(&self, stacks: &[Stack]) -> Profile {
        const SECOND: i64 = 1_000_000_000;
        let mut tables = Tables::default();
        // The first text is the empty one.
        tables.text("");
        let period = SECOND / i64::from(self.frequency.max(1));
        let thread = tables.text("thread");
        let sample = stacks
            .iter()
            .map(|stack| Sample {
                location_id: stack.places.iter().map(|place| tables.place(place)).collect(),
                value: vec![stack.samples, stack.samples.saturating_mul(period)],
                label: vec![Label {
                    key: thread,
                    str: tables.text(&stack.thread),
                }],
            })
            .collect();
        let samples = tables.kind("samples", "count");
        let cpu = tables.kind("cpu", "nanoseconds");
        Profile {
            sample_type: vec![samples, cpu.clone()],
            sample,
            location: tables.places.made,
            function: tables.functions.made,
            string_table: tables.texts.made,
            time_nanos: nanos(self.begun),
            duration_nanos: nanos(self.length),
            period_type: Some(cpu),
            period,
        }
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// What is named by number, made once.
#[derive(Debug)]
struct Table<K, V> {
    numbers: HashMap<K, usize>,
    made: Vec<V>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            numbers: HashMap::new(),
            made: Vec::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Tables {
    texts: Table<String, String>,
    functions: Table<(String, String), Function>,
    places: Table<Vec<Frame>, Location>,
}

impl Tables {
    /// Texts count from 0.
    fn text(&mut self, text: &str) -> i64 {
        let table = &mut self.texts;
        let number = *table.numbers.entry(text.to_owned()).or_insert_with(|| {
            table.made.push(text.to_owned());
            table.made.len() - 1
        });
        i64::try_from(number).unwrap_or(i64::MAX)
    }

    /// Functions count from 1.
    fn function(&mut self, frame: &Frame) -> u64 {
        let (name, filename) = (self.text(&frame.function), self.text(&frame.file));
        let table = &mut self.functions;
        let key = (frame.function.clone(), frame.file.clone());
        let number = *table.numbers.entry(key).or_insert_with(|| {
            table.made.push(Function {
                id: table.made.len() as u64 + 1,
                name,
                system_name: name,
                filename,
            });
            table.made.len()
        });
        number as u64
    }

    /// Places count from 1.
    fn place(&mut self, frames: &[Frame]) -> u64 {
        let line = frames
            .iter()
            .map(|frame| Line {
                function_id: self.function(frame),
                line: frame.line,
            })
            .collect();
        let table = &mut self.places;
        let number = *table.numbers.entry(frames.to_vec()).or_insert_with(|| {
            table.made.push(Location {
                id: table.made.len() as u64 + 1,
                line,
            });
            table.made.len()
        });
        number as u64
    }

    fn kind(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType {
            kind: self.text(kind),
            unit: self.text(unit),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    str: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str) -> Frame {
        Frame {
            function: function.to_owned(),
            file: "src/carry.rs".to_owned(),
            line: 7,
        }
    }

    fn text(profile: &Profile, number: i64) -> &str {
        &profile.string_table[usize::try_from(number).unwrap()]
    }

    #[test]
    fn stacks_can_be_read_back_from_a_profile() {
        let stack = |samples, functions: &[&str]| Stack {
            thread: "worker".to_owned(),
            places: functions.iter().map(|function| vec![frame(function)]).collect(),
            samples,
        };
        let stacks = [stack(3, &["copy", "carry"]), stack(1, &["carry"])];
        let taken = Taken {
            begun: Duration::from_secs(5),
            length: Duration::from_secs(2),
            frequency: 100,
        };
        let profile = Profile::decode(&*taken.encode(&stacks)).unwrap();
        assert_eq!(profile.string_table[0], "");
        assert_eq!(
            (profile.time_nanos, profile.duration_nanos),
            (5_000_000_000, 2_000_000_000)
        );
        let kinds: Vec<&str> = profile
            .sample_type
            .iter()
            .map(|kind| text(&profile, kind.kind))
            .collect();
        assert_eq!(kinds, ["samples", "cpu"]);
        for (sample, stack) in profile.sample.iter().zip(&stacks) {
            assert_eq!(sample.value, [stack.samples, stack.samples * 10_000_000]);
            assert_eq!(text(&profile, sample.label[0].str), "worker");
            let names = sample.location_id.iter().map(|id| {
                let location = profile
                    .location
                    .iter()
                    .find(|location| location.id == *id)
                    .unwrap();
                let line = &location.line[0];
                let function = profile
                    .function
                    .iter()
                    .find(|function| function.id == line.function_id);
                text(&profile, function.unwrap().name).to_owned()
            });
            let expected = stack.places.iter().map(|place| place[0].function.clone());
            assert!(names.eq(expected), "from the innermost outwards");
        }
        assert_eq!(profile.location.len(), 2, "a place is written once");
    }
}
