//! A netlink socket for calls that block.
//!
//! The kernel answers within the system calls themselves, but those wait for its lock on the network: they belong on threads that may block.
//! Answers are decoded here and not by `rtnetlink`'s connection, which drops a message it does not understand: a link would be missing, and
//! nobody would know.

use std::io;

use nix::{errno::Errno, sys::socket::MsgFlags};
use rtnetlink::{
    packet_core::{
        DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader,
        NetlinkMessage, NlasIterator, parse_i32,
    },
    packet_route::RouteNetlinkMessage,
    sys::{Socket as Raw, SocketAddr, protocols::NETLINK_ROUTE},
};

/// How often a dump is begun again when the network changed meanwhile.
const TRIES: u32 = 20;
/// The kernel writes at most 32 KiB at once.
const BUFFER: usize = 64 << 10;

/// A socket to the kernel's network, of the namespace of the thread that opened it.
pub(super) struct Socket {
    raw: Raw,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let mut raw = Raw::new(NETLINK_ROUTE)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        // The kernel then filters dumps as they are asked for, instead of ignoring what it is asked.
        raw.set_netlink_get_strict_chk(true)?;
        Ok(Self { raw, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Changes something. `flags`: NLM_F_CREATE and NLM_F_EXCL, where they are meant.
    pub(super) fn change(&mut self, request: RouteNetlinkMessage, flags: u16) -> Result<(), Errno> {
        let errno = |e: io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(Errno::EPROTO as i32));
        self.send(request, flags | NLM_F_ACK).map_err(errno)?;
        // An acknowledgement is an error message with the number 0.
        while !self.receive(&mut |_| Ok(())).map_err(errno)?.done {}
        Ok(())
    }

    /// All things of a kind. Messages for which `decode` gives `None` are left out.
    pub(super) fn dump<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        decode: impl Fn(&[u8]) -> Result<Option<T>, DecodeError>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..TRIES {
            let mut found = Vec::new();
            let mut interrupted = false;
            self.send(request.clone(), NLM_F_DUMP)?;
            loop {
                let part = self.receive(&mut |payload| {
                    found.extend(decode(payload)?);
                    Ok(())
                })?;
                interrupted |= part.interrupted;
                if part.done {
                    break;
                }
            }
            if !interrupted {
                return Ok(found);
            }
        }
        Err(io::Error::other(format!("it changed {TRIES} times while it was read")))
    }

    fn send(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), request.into());
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.raw.send(&bytes, 0)?;
        Ok(())
    }

    fn receive(&mut self, each: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>) -> io::Result<Part> {
        self.buffer.clear();
        let length = self.raw.recv(&mut self.buffer, MsgFlags::MSG_TRUNC.bits())?;
        if length > self.buffer.len() {
            return Err(io::Error::other(format!("an answer of {length} bytes")));
        }
        part(&self.buffer, self.sequence, each)
    }
}

/// What one datagram says about the dump it is a part of.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    done: bool,
    interrupted: bool,
}

/// Goes through the messages of a datagram. Answers to requests that were given up are passed over.
fn part(mut bytes: &[u8], sequence: u32, each: &mut impl FnMut(&[u8]) -> Result<(), DecodeError>) -> io::Result<Part> {
    let mut part = Part { done: false, interrupted: false };
    while !bytes.is_empty() {
        let message = NetlinkBuffer::new_checked(bytes).map_err(io::Error::other)?;
        // Messages begin at multiples of four.
        let next = (message.length() as usize).next_multiple_of(4).min(bytes.len());
        bytes = &bytes[next..];
        if message.sequence_number() != sequence {
            continue;
        }
        part.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
        match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => {
                let code = message.payload().get(..4).map_or(Ok(0), parse_i32).map_err(io::Error::other)?;
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                part.done = true;
            }
            _ => each(message.payload()).map_err(io::Error::other)?,
        }
    }
    Ok(part)
}

/// The attributes in `bytes`: type, without its flags, and value.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), DecodeError>> {
    NlasIterator::new(bytes).map(|attribute| {
        let attribute = attribute?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        Ok((kind, &attribute.into_inner()[4..length]))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &sequence.to_ne_bytes(), &[0; 4]].concat();
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_datagram_is_taken_apart_and_answers_to_others_are_passed_over() {
        let done = message(NLMSG_DONE, NLM_F_DUMP_INTR, 7, &0_i32.to_ne_bytes());
        let first = [message(16, 0, 7, b"odd"), message(16, NLM_F_DUMP_INTR, 6, b"old"), message(16, 0, 7, b"even")].concat();
        let mut seen = Vec::new();
        let mut each = |payload: &[u8]| {
            seen.push(payload.to_owned());
            Ok(())
        };
        assert_eq!(part(&first, 7, &mut each).unwrap(), Part { done: false, interrupted: false });
        assert_eq!(part(&[first, done].concat(), 7, &mut each).unwrap(), Part { done: true, interrupted: true });
        assert_eq!(seen, [&b"odd"[..], b"even", b"odd", b"even"]);
    }

    #[test]
    fn an_error_at_the_beginning_or_the_end_of_a_dump_is_told() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let bytes = message(kind, 0, 1, &(-(Errno::ENODEV as i32)).to_ne_bytes());
            assert_eq!(part(&bytes, 1, &mut |_| Ok(())).unwrap_err().raw_os_error(), Some(Errno::ENODEV as i32));
        }
        let acknowledged = message(NLMSG_ERROR, 0, 1, &0_i32.to_ne_bytes());
        assert!(part(&acknowledged, 1, &mut |_| Ok(())).unwrap().done);
    }

    #[test]
    fn what_cannot_be_decoded_is_an_error_and_not_left_out() {
        assert!(part(&message(16, 0, 1, b""), 1, &mut |_| Err("no".into())).is_err());
        assert!(part(&[0; 15], 1, &mut |_| Ok(())).is_err());
        assert!(attributes(&[3, 0, 1, 0]).any(|a| a.is_err()));
    }
}
