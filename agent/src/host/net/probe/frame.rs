//! The frames of a probe: EtherType 0x88B5 (IEEE 802, local experiments), payload exactly as long as the MTU that is tried.
//!
//! | bytes | what |
//! |---|---|
//! | 0-3 | `PVLP` |
//! | 4 | version |
//! | 5 | kind: 1 probe, 2 answer |
//! | 6-7 | 0 |
//! | 8-15 | sequence, big endian |
//! | 16-19 | the payload's length, big endian |
//! | 20-51 | SHA-256 over all before it, the frame's source address, and the token |
//! | 52- | zeros |
//!
//! The token itself is never on the wire. Who does not know it can repeat a frame, but make none: no answer, no other size, no other source
//! that the answer would go to.

use sha2::{Digest, Sha256};
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

/// Local experimental EtherType 1.
pub(super) const ETHERTYPE: u16 = 0x88b5;
/// The smallest payload.
pub(super) const MIN: usize = HEADER + PROOF;
/// The largest Ethernet frame that is read: no MTU is larger than 65535.
pub(super) const MAX_FRAME: usize = ETHERNET + 65_535;

const MAGIC: &[u8; 4] = b"PVLP";
const VERSION: u8 = 1;
const HEADER: usize = 20;
const PROOF: usize = 32;
/// Addresses and EtherType.
const ETHERNET: usize = 14;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Asks for an answer.
    Probe = 1,
    /// Is one.
    Answer = 2,
}

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Source address.
    pub(super) from: EthernetAddress,
    /// Destination address.
    pub(super) to: EthernetAddress,
    /// What it is for.
    pub(super) kind: Kind,
    /// Which probe it is, or answers.
    pub(super) sequence: u64,
    /// Length of the payload, at least [`MIN`].
    pub(super) mtu: u32,
}

impl Frame {
    /// The frame as it goes over the wire. `None`: no frame has such a size.
    pub(super) fn encode(&self, token: &str) -> Option<Vec<u8>> {
        let payload = usize::try_from(self.mtu).ok().filter(|n| *n >= MIN && ETHERNET + n <= MAX_FRAME)?;
        let mut frame = EthernetFrame::new_unchecked(vec![0; ETHERNET + payload]);
        frame.set_src_addr(self.from);
        frame.set_dst_addr(self.to);
        frame.set_ethertype(EthernetProtocol::Unknown(ETHERTYPE));
        let body = frame.payload_mut();
        body[..4].copy_from_slice(MAGIC);
        body[4] = VERSION;
        body[5] = self.kind as u8;
        body[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        body[16..HEADER].copy_from_slice(&self.mtu.to_be_bytes());
        let proof = proof(&body[..HEADER], self.from, token);
        body[HEADER..MIN].copy_from_slice(&proof);
        Some(frame.into_inner())
    }

    /// Reads a frame of this token. `None`: malformed, of another version, token or length than it says.
    pub(super) fn decode(bytes: &[u8], token: &str) -> Option<Self> {
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        let body = frame.payload();
        if frame.ethertype() != EthernetProtocol::Unknown(ETHERTYPE) || body.len() < MIN || !body.starts_with(MAGIC) || body[4] != VERSION {
            return None;
        }
        let kind = match body[5] {
            1 => Kind::Probe,
            2 => Kind::Answer,
            _ => return None,
        };
        let sequence = u64::from_be_bytes(body[8..16].try_into().ok()?);
        let mtu = u32::from_be_bytes(body[16..HEADER].try_into().ok()?);
        let from = frame.src_addr();
        let whole = usize::try_from(mtu).is_ok_and(|n| n == body.len());
        (whole && body[HEADER..MIN] == proof(&body[..HEADER], from, token)).then_some(Self {
            from,
            to: frame.dst_addr(),
            kind,
            sequence,
            mtu,
        })
    }
}

fn proof(header: &[u8], from: EthernetAddress, token: &str) -> [u8; PROOF] {
    Sha256::new().chain_update(header).chain_update(from.as_bytes()).chain_update(token).finalize().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        (any::<[u8; 6]>(), any::<[u8; 6]>(), any::<bool>(), any::<u64>(), 52u32..4000).prop_map(|(from, to, probe, sequence, mtu)| Frame {
            from: EthernetAddress(from),
            to: EthernetAddress(to),
            kind: if probe { Kind::Probe } else { Kind::Answer },
            sequence,
            mtu,
        })
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_and_is_as_long_as_its_mtu(frame in frames(), token in "[A-Za-z0-9-]{16,64}") {
            let bytes = frame.encode(&token).unwrap();
            prop_assert_eq!(bytes.len(), 14 + frame.mtu as usize);
            prop_assert_eq!(Frame::decode(&bytes, &token), Some(frame));
            prop_assert_eq!(Frame::decode(&bytes, &format!("{token}x")), None);
        }

        #[test]
        fn what_was_changed_on_the_way_is_ignored(frame in frames(), at in 6usize..66, bit in 0u8..8, longer in 1usize..9) {
            let bytes = frame.encode("0123456789abcdef").unwrap();
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            prop_assert_eq!(Frame::decode(&changed, "0123456789abcdef"), None);
            prop_assert_eq!(Frame::decode(&bytes[..bytes.len() - 1], "0123456789abcdef"), None);
            let padded = [bytes, vec![0; longer]].concat();
            prop_assert_eq!(Frame::decode(&padded, "0123456789abcdef"), None);
        }

        #[test]
        fn anything_else_is_none(bytes in proptest::collection::vec(any::<u8>(), 0..200), like in any::<bool>()) {
            let mut bytes = bytes;
            // As close as one comes without the token.
            if like && bytes.len() >= 20 {
                bytes[12..20].copy_from_slice(&[0x88, 0xb5, b'P', b'V', b'L', b'P', 1, 1]);
            }
            prop_assert_eq!(Frame::decode(&bytes, "0123456789abcdef"), None);
        }
    }

    #[test]
    fn no_frame_is_shorter_than_its_header_or_longer_than_65535() {
        let frame = |mtu| Frame { from: EthernetAddress([2; 6]), to: EthernetAddress::BROADCAST, kind: Kind::Probe, sequence: 1, mtu };
        for (mtu, some) in [(0, false), (51, false), (52, true), (65_535, true), (65_536, false), (u32::MAX, false)] {
            assert_eq!(frame(mtu).encode("t").is_some(), some, "{mtu}");
        }
    }
}
