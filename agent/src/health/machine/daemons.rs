//! PVE's daemons.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::timeout;

use super::{
    source::{Look, check},
    unit::{self, Standing, standing},
    words::{age, moment, span},
};
use crate::{
    error::{Error, Trouble},
    health::{Check, Finding, Pace, Source},
    host::{
        machine::Machine,
        pve::Pve,
        units::{UnitState, Units},
    },
};

const DAEMON: Check =
    check("host.pvedaemon", "Everything that changes VMs goes through pvedaemon, the agent's calls and the web interface's alike.");
const STATUS: Check = check(
    "host.pvestatd",
    "Without pvestatd the web interface shows grey question marks, balloons do not move, and storages are not activated.",
);
const PROXY: Check = check("host.pveproxy", "Without pveproxy neither the web interface nor PVE's API answers from outside.");

const PVEDAEMON: &str = "pvedaemon.service";
const PVESTATD: &str = "pvestatd.service";
const PVEPROXY: &str = "pveproxy.service";

/// A read of one storage's configuration takes a millisecond; the daemon's three workers may all be busy for some seconds.
const ANSWER: Duration = Duration::from_secs(8);
/// So many looks in a row without an answer, and it is wedged: with the default period for a minute.
const SILENT_LOOKS: u32 = 6;
/// pvestatd tells every ten seconds; a storage that times out holds it up for a minute or two.
const TOLD_LATE: Duration = Duration::from_secs(180);
/// After this long the cluster file system forgets what a node told.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// What pvedaemon made of a question.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Yes,
    /// It does not listen, or ended the connection.
    No(String),
    /// It has not answered for so many looks in a row.
    Silent(u32),
}

pub(super) fn pvedaemon(pace: Pace, pve: &Arc<dyn Pve>, units: &Arc<dyn Units>) -> Arc<dyn Source> {
    let (pve, asked, silent) = (Arc::clone(pve), Arc::clone(units), Arc::new(AtomicU32::new(0)));
    let look = move || {
        let (pve, units, silent) = (Arc::clone(&pve), Arc::clone(&asked), Arc::clone(&silent));
        async move {
            let (answer, state) = tokio::join!(ask(pve.as_ref(), &silent), units.state(PVEDAEMON));
            vec![decide_daemon(&answer, &state, SystemTime::now())]
        }
    };
    Look::new("pvedaemon", &[DAEMON], pace, look).stirred_by_units(units, &[PVEDAEMON]).done()
}

/// Every host has the storage `local` in its configuration, or an answer that it has not.
async fn ask(pve: &dyn Pve, silent: &AtomicU32) -> Answer {
    match timeout(ANSWER, pve.storage_config("local")).await {
        Ok(Err(Error::PveDown { detail })) => {
            silent.store(0, Ordering::Relaxed);
            Answer::No(detail)
        }
        Ok(_) => {
            silent.store(0, Ordering::Relaxed);
            Answer::Yes
        }
        Err(_) => Answer::Silent(silent.fetch_add(1, Ordering::Relaxed).saturating_add(1)),
    }
}

/// A daemon that is there and does not answer is no unit to restart without looking: its running tasks (backups, migrations, clones) would be
/// ended with it.
fn decide_daemon(answer: &Answer, state: &Result<UnitState, Error>, now: SystemTime) -> Finding {
    let id = DAEMON.id;
    let reload = "look at `pvesh get /nodes/localhost/tasks --source active`, then `systemctl reload pvedaemon`, which lets running tasks go on; a storage that hangs \
                  holds it up too";
    let standing = standing(PVEDAEMON, state, now);
    match (answer, standing) {
        (Answer::Yes, Standing::Shaky(text)) => Finding::degraded(id, text, unit::remedy(PVEDAEMON)).about(PVEDAEMON),
        // What answers runs, whatever systemd says.
        (Answer::Yes, Standing::Runs(text, _)) => Finding::ok(id, format!("it answers; {text}")),
        (Answer::Yes, _) => Finding::ok(id, "it answers"),
        (_, Standing::Down(text)) => unit::mended(Finding::failed(id, text, unit::remedy(PVEDAEMON)).about(PVEDAEMON), PVEDAEMON, state),
        (_, Standing::Off(text)) => {
            Finding::failed(id, text, format!("`systemctl unmask {PVEDAEMON}; systemctl enable --now {PVEDAEMON}`")).about(PVEDAEMON)
        }
        (_, Standing::Absent) => Finding::not_applicable(id, format!("there is no {PVEDAEMON}: this is no PVE host")),
        // Being started.
        (Answer::No(_), Standing::Runs(text, None)) => Finding::unknown(id, text),
        (Answer::No(detail), Standing::Runs(text, _) | Standing::Shaky(text)) => {
            Finding::failed(id, format!("{text}, yet it does not answer: {detail}"), reload).about(PVEDAEMON)
        }
        (Answer::No(detail), Standing::Unknown(_)) => {
            Finding::failed(id, format!("it does not answer: {detail}"), unit::remedy(PVEDAEMON)).about(PVEDAEMON)
        }
        (Answer::Silent(looks), _) if *looks >= SILENT_LOOKS => Finding::failed(
            id,
            format!("it has not answered {SILENT_LOOKS} times in a row or more, each time for {}", span(ANSWER)),
            reload,
        )
        .about(PVEDAEMON),
        (Answer::Silent(_), _) => Finding::unknown(id, format!("it did not answer within {}", span(ANSWER))),
    }
}

pub(super) fn pvestatd(pace: Pace, machine: &Arc<dyn Machine>, units: &Arc<dyn Units>) -> Arc<dyn Source> {
    let (machine, asked) = (Arc::clone(machine), Arc::clone(units));
    let look = move || {
        let (machine, units) = (Arc::clone(&machine), Arc::clone(&asked));
        async move {
            let (told, state, store) = tokio::join!(machine.status_told(), units.state(PVESTATD), units.state("pve-cluster.service"));
            let kept_since = store.ok().and_then(|s| s.since);
            vec![decide_status(&told, &state, kept_since, SystemTime::now())]
        }
    };
    Look::new("pvestatd", &[STATUS], pace, look).stirred_by_units(units, &[PVESTATD]).done()
}

/// `kept_since`: since when the cluster file system runs, which keeps what was told in memory.
fn decide_status(
    told: &Result<Option<SystemTime>, Error>,
    state: &Result<UnitState, Error>,
    kept_since: Option<SystemTime>,
    now: SystemTime,
) -> Finding {
    let id = STATUS.id;
    let (text, since) = match standing(PVESTATD, state, now) {
        Standing::Runs(text, since) => (text, since),
        Standing::Shaky(text) => return Finding::degraded(id, text, unit::remedy(PVESTATD)).about(PVESTATD),
        Standing::Absent => return Finding::not_applicable(id, format!("there is no {PVESTATD}: this is no PVE host")),
        Standing::Off(text) => {
            return Finding::failed(id, text, format!("`systemctl unmask {PVESTATD}; systemctl enable --now {PVESTATD}`")).about(PVESTATD);
        }
        Standing::Down(text) => {
            return unit::mended(Finding::failed(id, text, unit::remedy(PVESTATD)).about(PVESTATD), PVESTATD, state);
        }
        Standing::Unknown(text) => return Finding::unknown(id, text),
    };
    let told = match told {
        Ok(told) => told,
        Err(Error::Look { trouble: Trouble::Missing, .. }) => return Finding::ok(id, text),
        Err(error) => return Finding::unknown(id, format!("{text}; what it told last is not known: {error}")),
    };
    let wedged = |silence: String| {
        let remedy = "a storage that hangs holds it up: look at `pvesm status` and host.storages; then `systemctl restart pvestatd`";
        unit::mended(Finding::failed(id, format!("{text}, but it {silence}"), remedy).about(PVESTATD), PVESTATD, state)
    };
    // What runs for a short time has had no occasion to tell anything.
    let long = |since: Option<SystemTime>| since.is_some_and(|s| age(s, now) > FORGOTTEN + TOLD_LATE);
    match told {
        Some(at) if age(*at, now) < TOLD_LATE => Finding::ok(id, format!("{text} and tells of this node")),
        Some(at) if since.is_some_and(|s| age(s, now) > TOLD_LATE) => {
            wedged(format!("has told nothing of this node since {}", moment(*at)))
        }
        None if long(since) && long(kept_since) => wedged(format!("has told nothing of this node for {} or longer", span(FORGOTTEN))),
        _ => Finding::ok(id, text),
    }
}

pub(super) fn pveproxy(pace: Pace, units: &Arc<dyn Units>) -> Arc<dyn Source> {
    let asked = Arc::clone(units);
    let look = move || {
        let units = Arc::clone(&asked);
        async move { vec![decide_proxy(&units.state(PVEPROXY).await, SystemTime::now())] }
    };
    Look::new("pveproxy", &[PROXY], pace, look).stirred_by_units(units, &[PVEPROXY]).done()
}

fn decide_proxy(state: &Result<UnitState, Error>, now: SystemTime) -> Finding {
    let id = PROXY.id;
    match standing(PVEPROXY, state, now) {
        Standing::Runs(text, _) => Finding::ok(id, text),
        Standing::Shaky(text) => Finding::degraded(id, text, unit::remedy(PVEPROXY)).about(PVEPROXY),
        Standing::Absent => Finding::not_applicable(id, format!("there is no {PVEPROXY}: this is no PVE host")),
        // Some switch the web interface off on purpose; nothing of the agent needs it.
        Standing::Off(text) => Finding::not_applicable(id, format!("{text}: an administrator wants no web interface here")),
        Standing::Down(text) => unit::mended(Finding::failed(id, text, unit::remedy(PVEPROXY)).about(PVEPROXY), PVEPROXY, state),
        Standing::Unknown(text) => Finding::unknown(id, text),
    }
}

#[cfg(test)]
#[path = "daemons_tests.rs"]
mod tests;
