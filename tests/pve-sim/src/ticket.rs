//! Tickets of the local API. `PVE:<user>:<hex time>::<base64 signature>`, as on a real host; the signature is an HMAC-SHA1 with the bytes of
//! `/etc/pve/priv/authkey.key`, a stand-in for PVE's RSA: nothing but the daemon that shares the key ever looks at it.

use std::{
    fs, io,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha1::{Digest, Sha1};

use crate::layout::NodeLayout;

/// Seconds for which a ticket is good.
pub const LIFETIME_S: u64 = 7200;
/// What an API token begins with in the `Authorization` header, where it stands in for a ticket.
const TOKEN: &str = "PVEAPIToken=";
/// Seconds that a ticket may lie in the future.
pub const SKEW_S: u64 = 300;

fn key_path(layout: &NodeLayout) -> PathBuf {
    layout.etc_pve().join("priv/authkey.key")
}

/// Makes a ticket for `user` (`root@pam`), valid from now on. The cluster's key is made when there is none yet.
///
/// # Errors
/// When the key can be neither read nor made.
pub fn assemble(layout: &NodeLayout, user: &str) -> io::Result<String> {
    assemble_at(layout, user, now())
}

/// Like [`assemble`], with a clock that shows `time`, in seconds since 1970.
///
/// # Errors
/// When the key can be neither read nor made.
pub fn assemble_at(layout: &NodeLayout, user: &str, time: u64) -> io::Result<String> {
    let key = match fs::read(key_path(layout)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(layout)?,
        other => other?,
    };
    Ok(sign(&key, user, time))
}

fn make_key(layout: &NodeLayout) -> io::Result<Vec<u8>> {
    let key = format!("{}{}\n", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let path = key_path(layout);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, &key)?;
    Ok(key.into_bytes())
}

/// The user of a valid ticket; none if it is garbled, signed with another key, too old, or from the future.
pub fn verify(layout: &NodeLayout, ticket: &str) -> Option<String> {
    if let Some(token) = ticket.strip_prefix(TOKEN) {
        return token_user(layout, token);
    }
    let key = fs::read(key_path(layout)).ok()?;
    user_of(&key, ticket, now())
}

/// The user of an API token, `<user>!<name>=<secret>`, that stands in `priv/token.cfg`.
fn token_user(layout: &NodeLayout, token: &str) -> Option<String> {
    let (user, secret) = token.split_once('=')?;
    let known = fs::read_to_string(layout.etc_pve().join("priv/token.cfg")).ok()?;
    known.lines().any(|line| line.split_once(' ') == Some((user, secret))).then(|| user.to_owned())
}

fn sign(key: &[u8], user: &str, time: u64) -> String {
    let plain = format!("PVE:{user}:{time:08X}");
    let signature = STANDARD.encode(hmac(key, plain.as_bytes()));
    format!("{plain}::{signature}")
}

fn user_of(key: &[u8], ticket: &str, now: u64) -> Option<String> {
    let (plain, _) = ticket.split_once("::")?;
    let (user, time) = plain.strip_prefix("PVE:")?.rsplit_once(':')?;
    let time = u64::from_str_radix(time, 16).ok()?;
    let fresh = time <= now + SKEW_S && now < time + LIFETIME_S;
    (fresh && user == "root@pam" && sign(key, user, time) == ticket).then(|| user.to_owned())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 20] {
    const BLOCK: usize = 64;
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..20].copy_from_slice(&Sha1::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha1::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message).finalize();
    Sha1::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hmac_gives_the_value_of_rfc_2202() {
        assert_eq!(hex::encode(hmac(b"Jefe", b"what do ya want for nothing?")), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
    }

    #[test]
    fn a_ticket_is_good_for_two_hours_and_five_minutes_early() {
        let ticket = sign(b"key", "root@pam", 1_000_000);
        for (now, good) in [(1_000_000, true), (1_007_199, true), (1_007_200, false), (999_710, true), (999_690, false)] {
            assert_eq!(user_of(b"key", &ticket, now).is_some(), good, "at {now}");
        }
    }

    #[test]
    fn a_garbled_ticket_is_refused() {
        let ticket = sign(b"key", "root@pam", 1_000_000);
        let root = sign(b"key", "root", 1_000_000);
        let shorter = &ticket[..ticket.len() - 1];
        for bad in ["", "PVE", "PVE:root@pam:zz::x", "PVE:root@pam", shorter, &root, &ticket.replace("root", "joe")] {
            assert_eq!(user_of(b"key", bad, 1_000_000), None, "{bad}");
        }
        assert_eq!(user_of(b"rotated", &ticket, 1_000_000), None);
    }
}
