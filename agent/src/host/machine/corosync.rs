//! What `corosync-cfgtool -s` prints.

use super::{CorosyncLink, CorosyncStatus};

/// Reads it; `None`: it is none of the forms that corosync 3 prints.
///
/// Those are: `nodeid:          2:\tconnected` (since 3.0.4), `nodeid  2:\tlink enabled:1\tlink connected:1` (3.0 to 3.0.3).
pub(super) fn parse(text: &str) -> Option<CorosyncStatus> {
    let mut status: Option<CorosyncStatus> = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("Local node ID ") {
            let id = rest.split([',', ' ']).next()?.parse().ok()?;
            status = Some(CorosyncStatus { local: id, links: Vec::new() });
            continue;
        }
        let Some(status) = &mut status else { continue };
        if let Some(rest) = line.strip_prefix("LINK ID ") {
            let number = rest.split_whitespace().next()?.parse().ok()?;
            status.links.push(CorosyncLink { number, ..CorosyncLink::default() });
            continue;
        }
        let Some(link) = status.links.last_mut() else { continue };
        if let Some(address) = line.strip_prefix("addr").map(|r| r.trim_start()).and_then(|r| r.strip_prefix('=')) {
            address.trim().clone_into(&mut link.address);
        } else if let Some(rest) = line.strip_prefix("nodeid") {
            let (id, state) = rest.trim_start_matches([':', ' ']).split_once(':')?;
            let id = id.trim().parse().ok()?;
            // Itself is no peer.
            if id != status.local {
                link.peers.push((id, connected(state)?));
            }
        }
    }
    status
}

fn connected(state: &str) -> Option<bool> {
    let state = state.trim();
    match state {
        "connected" => Some(true),
        "disconnected" => Some(false),
        _ if state.contains("link connected:1") => Some(true),
        _ if state.contains("link connected:0") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// Printed by corosync 3.1.7 for three nodes with two links: the second link of node 2 was down, node 3 was stopped.
    const RECORDED: &str = "Local node ID 1, transport knet\nLINK ID 0 udp\n\taddr\t= 10.7.0.1\n\tstatus:\n\t\tnodeid:          1:\tlocalhost\n\t\tnodeid:          2:\tconnected\n\t\tnodeid:          3:\tdisconnected\nLINK ID 1 udp\n\taddr\t= 10.8.0.1\n\tstatus:\n\t\tnodeid:          1:\tlocalhost\n\t\tnodeid:          2:\tdisconnected\n\t\tnodeid:          3:\tdisconnected\n";

    #[test]
    fn links_and_peers_are_read_as_corosync_prints_them() {
        let link = |number, address: &str, peers: [(u32, bool); 2]| CorosyncLink { number, address: address.into(), peers: peers.into() };
        let status = parse(RECORDED).unwrap();
        assert_eq!(status.local, 1);
        assert_eq!(status.links, [link(0, "10.7.0.1", [(2, true), (3, false)]), link(1, "10.8.0.1", [(2, false), (3, false)])]);
    }

    #[test]
    fn the_older_form_is_read_too() {
        let text = "Printing link status.\nLocal node ID 2\nLINK ID 0\n\taddr\t= fd00::2\n\tstatus:\n\t\tnodeid  1:\tlink enabled:1\tlink connected:0\n\t\tnodeid  2:\tlink enabled:0\tlink connected:1\n";
        let status = parse(text).unwrap();
        assert_eq!((status.local, status.links[0].address.as_str(), &status.links[0].peers), (2, "fd00::2", &vec![(1, false)]));
    }

    #[test]
    fn what_is_not_understood_is_no_status() {
        for text in [
            "",
            "Could not initialize corosync configuration API error 2\n",
            "Local node ID x",
            "Local node ID 1\nLINK ID 0 udp\n\tnodeid: 2: well\n",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        // A node that is alone in its cluster has no links.
        assert_eq!(parse("Local node ID 1, transport knet\n").unwrap().links, []);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(Local node ID [0-9x]{0,4}|LINK ID|\tnodeid:?| 1:|\taddr|=|connected|\n|\\PC){0,40}") {
            let _ = parse(&text);
        }
    }
}
