//! The agent itself: its certificate, its journal of operations.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Check, Finding, Group, Pace, Source};
use crate::{
    error::Error,
    host::{
        blocking::Blocking,
        clock::Clock,
        room::{Room, room},
    },
    operation::{Condition, Operations},
    tls::{AuthorityInfo, Credentials, lasting},
};

const CERTIFICATE: Check = Check {
    id: "agent.certificate",
    group: Group::Agent,
    why: "Without a valid certificate no controller and no person can reach the agent.",
};
const JOURNAL: Check = Check {
    id: "agent.journal",
    group: Group::Agent,
    why: "What cannot be written to the journal of operations is not begun: the agent refuses every change.",
};
/// The checks of the agent itself.
pub static CHECKS: [Check; 2] = [CERTIFICATE, JOURNAL];

/// The journal is a few megabytes; a commit that finds no room fails it until the agent is restarted.
const LITTLE_ROOM: u64 = 64 << 20;
/// A journal's commit makes no file, yet redb may grow it by what one needs.
const FEW_INODES: u64 = 16;
/// Percent of the operations that may be under way at once.
const NEAR_LIMIT: usize = 80;
/// Longer than a look at the state folder may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The agent.
pub struct Own {
    /// Its certificate.
    pub credentials: Arc<Credentials>,
    /// Its operations.
    pub operations: Arc<Operations>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// From one look to the next.
    pub period: Duration,
    /// How long before its end a certificate is told.
    pub warning: Duration,
    /// Where a look at the journal's file system may hang.
    pub place: Blocking,
}

#[tonic::async_trait]
impl Source for Own {
    fn name(&self) -> &'static str {
        "agent"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        Pace { period: self.period, deadline: DEADLINE }
    }

    async fn look(&self) -> Vec<Finding> {
        let condition = self.operations.condition();
        let room = room(&self.place, &condition.path).await;
        let rejected = self.credentials.rejected().map(|e| e.to_string());
        let current = self.credentials.current();
        let cas = &current.authorities;
        vec![certificate(current.not_after, cas, rejected.as_deref(), self.clock.now(), self.warning), journal(&condition, room)]
    }
}

/// A time as people read it.
fn date(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "at an unknown time".to_owned(), |t| t.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

/// `cas`: those whose clients are heard.
fn certificate(not_after: SystemTime, cas: &[AuthorityInfo], rejected: Option<&str>, now: SystemTime, warning: Duration) -> Finding {
    let id = CERTIFICATE.id;
    let renew = "renew it (`pveletctl pki renew`); once it has ended: `pvelet-agent signing-request`, `pveletctl pki sign`, `pvelet-agent install-certificate`";
    let end = date(not_after);
    if now >= not_after {
        return Finding::failed(id, format!("the agent's certificate ended {end}"), renew);
    }
    if let Some(last) = cas.iter().max_by_key(|ca| ca.not_after).filter(|ca| ca.not_after <= now) {
        let seen = format!("no client is heard: the CA '{}' ended {}, and there is no other", last.subject, date(last.not_after));
        let remedy = "bring one that is valid, on this host: `pvelet-agent install-certificate --ca ca.crt --crl ca.crl` with the host's certificate of it";
        return Finding::failed(id, seen, remedy);
    }
    if let Some(why) = rejected {
        let seen = format!("the files of [tls] are not in use: {why}; the last good certificate ends {end}");
        return Finding::degraded(
            id,
            seen,
            "put them right; they are taken over by themselves, and `pvelet-agent check-config` tries them",
        );
    }
    if not_after < now + warning {
        return Finding::degraded(id, format!("the agent's certificate ends {end}"), renew);
    }
    if let Some(ca) = lasting(cas).min_by_key(|ca| ca.not_after).filter(|ca| ca.not_after < now + warning) {
        let (name, ends) = (&ca.subject, date(ca.not_after));
        let seen = match ca.not_after <= now {
            true => format!("the CA '{name}' ended {ends}; no client of it is heard"),
            false => format!("the CA '{name}' ends {ends}; no client of it is heard afterwards"),
        };
        // While one is being replaced there is no third.
        let remedy = match cas.iter().any(|other| other.not_after > ca.not_after) {
            true => {
                "renew what it issued, take it out of the CA's folder (`pveletctl pki rollover finish`), and bring that here (`pveletctl pki push`)"
            }
            false => "put a new CA beside it (`pveletctl pki rollover start`)",
        };
        return Finding::degraded(id, seen, remedy);
    }
    Finding::ok(id, format!("the agent's certificate ends {end}"))
}

fn journal(condition: &Condition, room: Result<Room, Error>) -> Finding {
    let (id, path) = (JOURNAL.id, condition.path.display());
    let finding = |finding: Finding| finding.about(path.to_string());
    if let Some(why) = &condition.failed {
        let remedy = "put the file system right, then `systemctl restart pvelet-agent`";
        return finding(Finding::failed(id, format!("the journal cannot be written: {why}"), remedy));
    }
    let room = match room {
        Ok(room) => room,
        Err(error) => return finding(Finding::unknown(id, error.to_string())),
    };
    if room.read_only {
        let remedy = "see `dmesg` for why, and mount it writable again";
        return finding(Finding::failed(id, "its file system is mounted read-only", remedy));
    }
    if room.free_bytes < LITTLE_ROOM || room.free_inodes.is_some_and(|n| n < FEW_INODES) {
        let inodes = room.free_inodes.map_or_else(String::new, |n| format!(", {n} inodes"));
        let seen = format!("its file system has {} MiB{inodes} left", room.free_bytes >> 20);
        return finding(Finding::degraded(id, seen, "make room there: a write that fails ends all changes until the agent is restarted"));
    }
    let Condition { active, max_active, .. } = condition;
    if active * 100 >= max_active * NEAR_LIMIT {
        let seen = format!("{active} of at most {max_active} operations are under way");
        let remedy = "see `pveletctl operations` for what they wait for; more are refused with OVERLOADED";
        return finding(Finding::degraded(id, seen, remedy));
    }
    finding(Finding::ok(id, "it is written, and has room"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Trouble, health::State};

    const DAY: Duration = Duration::from_secs(86400);

    fn ca(subject: &str, signer: &str, not_after: SystemTime) -> AuthorityInfo {
        AuthorityInfo { subject: subject.into(), sha256: format!("{signer} {not_after:?}"), signer: signer.into(), not_after, list: None }
    }

    #[test]
    fn a_certificate_is_told_before_its_end_and_failed_from_then_on() {
        let end = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let bad = Some("/etc/pvelet/tls/agent.crt has expired; issue a new one");
        let table = [
            (30 * DAY, None, State::Ok, "ends 2024-10-04 00:00 UTC"),
            (13 * DAY, None, State::Degraded, "ends 2024-10-04 00:00 UTC"),
            (30 * DAY, bad, State::Degraded, "not in use: /etc/pvelet/tls/agent.crt has expired"),
            (Duration::ZERO, None, State::Failed, "ended 2024-10-04"),
            (Duration::ZERO, bad, State::Failed, "ended 2024-10-04"),
        ];
        for (left, rejected, state, seen) in table {
            let found = certificate(end, &[ca("CN=ca", "a", end + 365 * DAY)], rejected, end - left, 14 * DAY);
            assert_eq!(found.state, state, "{}", found.seen);
            assert!(found.seen.contains(seen), "{}", found.seen);
            assert_eq!(found.remedy.is_empty(), state == State::Ok);
        }
    }

    #[test]
    fn a_client_ca_that_ends_soon_is_told_by_name_with_what_helps_then() {
        let end = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let (old, new) = (ca("CN=old", "a", end), ca("CN=new", "b", end + 365 * DAY));
        let renewed = ca("CN=old", "a", end + 365 * DAY);
        let (alone, beside, twice) = (vec![old.clone()], vec![new.clone(), old.clone()], vec![old.clone(), renewed]);
        let both_soon = vec![old, ca("CN=new", "b", end + DAY)];
        let (ends, ended) = ("CA 'CN=old' ends 2024-10-04 00:00 UTC", "CA 'CN=old' ended 2024-10-04 00:00 UTC");
        let table = [
            (&alone, 30 * DAY, State::Ok, "certificate ends", ""),
            (&alone, 13 * DAY, State::Degraded, ends, "rollover start"),
            (&alone, Duration::ZERO, State::Failed, ended, "install-certificate --ca"),
            // It is being replaced.
            (&beside, 30 * DAY, State::Ok, "certificate ends", ""),
            (&beside, 13 * DAY, State::Degraded, ends, "rollover finish"),
            (&beside, Duration::ZERO, State::Degraded, ended, "rollover finish"),
            (&both_soon, 13 * DAY, State::Degraded, ends, "rollover finish"),
            // Its renewed certificate counts for whoever it has issued.
            (&twice, 13 * DAY, State::Ok, "certificate ends", ""),
            (&twice, Duration::ZERO, State::Ok, "certificate ends", ""),
        ];
        for (cas, left, state, seen, remedy) in table {
            let found = certificate(end + 400 * DAY, cas, None, end - left, 14 * DAY);
            assert_eq!(found.state, state, "{}", found.seen);
            assert!(found.seen.contains(seen) && found.remedy.contains(remedy), "{}: {}", found.seen, found.remedy);
        }
    }

    #[test]
    fn a_journal_that_fails_or_soon_will_is_told() {
        let sound = Condition { path: "/var/lib/pvelet/journal.redb".into(), failed: None, active: 799, max_active: 1000 };
        let roomy = Room { free_bytes: 1 << 30, free_inodes: Some(1000), ..Room::default() };
        let silent = Error::Look { trouble: Trouble::Silent, message: "/var/lib/pvelet did not answer".into() };
        let table = [
            (sound.clone(), Ok(roomy), State::Ok, "has room"),
            (sound.clone(), Ok(Room { free_inodes: None, ..roomy }), State::Ok, "has room"),
            (Condition { active: 800, ..sound.clone() }, Ok(roomy), State::Degraded, "800 of at most 1000"),
            (Condition { failed: Some("No space left".into()), ..sound.clone() }, Ok(roomy), State::Failed, "cannot be written: No space"),
            (sound.clone(), Ok(Room { read_only: true, ..roomy }), State::Failed, "read-only"),
            (sound.clone(), Ok(Room { free_bytes: 5 << 20, ..roomy }), State::Degraded, "has 5 MiB, 1000 inodes left"),
            (sound.clone(), Ok(Room { free_inodes: Some(3), ..roomy }), State::Degraded, "3 inodes left"),
            (sound, Err(silent), State::Unknown, "did not answer"),
        ];
        for (condition, room, state, seen) in table {
            let found = journal(&condition, room);
            assert_eq!(found.state, state, "{}", found.seen);
            assert!(found.seen.contains(seen), "{}", found.seen);
            assert_eq!(found.subjects, ["/var/lib/pvelet/journal.redb"]);
        }
    }
}
