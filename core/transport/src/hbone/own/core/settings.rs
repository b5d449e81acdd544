//! SETTINGS, ours and the peer's, and what they change.

use super::super::fault::Fault;
use super::super::wire::{self, code};
use super::{Core, Role};

impl Core {
    /// What each side begins with.
    pub(super) fn introduce(&mut self) {
        if self.role == Role::Client {
            self.control.extend_from_slice(wire::PREFACE);
        }
        let settings = self.settings;
        let header_list = u32::try_from(self.header_list()).unwrap_or(u32::MAX);
        let mut values = vec![
            (wire::INITIAL_WINDOW_SIZE, settings.stream_window),
            (wire::MAX_FRAME_SIZE, settings.frame_size),
            (wire::MAX_HEADER_LIST_SIZE, header_list),
        ];
        values.push(match self.role {
            Role::Client => (wire::ENABLE_PUSH, 0),
            Role::Server => (wire::MAX_CONCURRENT_STREAMS, settings.streams_max),
        });
        let mut payload = Vec::new();
        for (id, value) in values {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        wire::put(&mut self.control, wire::SETTINGS, 0, 0, &payload);
        self.credit.owed = self.credit.target - wire::DEFAULT_WINDOW as usize;
        self.pay_connection(1);
    }

    pub(super) fn settings(&mut self, flags: u8, payload: &[u8]) -> Result<(), Fault> {
        if flags & wire::ACK != 0 {
            return Ok(());
        }
        let first = !std::mem::replace(&mut self.peer.heard, true);
        let mut streams_max = first.then_some(wire::LARGEST);
        let mut window = self.peer.window;
        for setting in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([setting[0], setting[1]]);
            let value = wire::number(&setting[2..]);
            match id {
                wire::ENABLE_PUSH if value > 1 || value == 1 && self.role == Role::Client => {
                    return Err(Fault::protocol("ENABLE_PUSH has no such value"));
                }
                wire::MAX_CONCURRENT_STREAMS => streams_max = Some(value),
                wire::INITIAL_WINDOW_SIZE if value > wire::LARGEST => {
                    return Err(Fault::flow("INITIAL_WINDOW_SIZE is too large"));
                }
                wire::INITIAL_WINDOW_SIZE => window = value,
                wire::MAX_FRAME_SIZE if !(16_384..=wire::LARGEST_FRAME_SIZE).contains(&value) => {
                    return Err(Fault::protocol("MAX_FRAME_SIZE has no such value"));
                }
                wire::MAX_FRAME_SIZE => self.peer.frame_max = value as usize,
                _ => {}
            }
        }
        if let Some(max) = streams_max {
            self.peer.streams_max = max;
            self.limit_changed = true;
            self.woken.append(&mut self.opening);
        }
        self.change_windows(window)?;
        wire::put(&mut self.control, wire::SETTINGS, wire::ACK, 0, &[]);
        Ok(())
    }

    /// RFC 9113, 6.9.2: all streams' windows move by the difference, and may become negative.
    fn change_windows(&mut self, window: u32) -> Result<(), Fault> {
        let change = i64::from(window) - i64::from(self.peer.window);
        self.peer.window = window;
        if change == 0 {
            return Ok(());
        }
        let mut grown = Vec::new();
        for (id, stream) in &mut self.streams {
            stream.send_window += change;
            if stream.send_window > i64::from(wire::LARGEST) {
                return Err(Fault::connection(
                    code::FLOW_CONTROL_ERROR,
                    "a window grew too large",
                ));
            }
            self.woken.extend(stream.wakers.write.take());
            grown.push(*id);
        }
        grown.into_iter().for_each(|id| self.list(id));
        Ok(())
    }
}
