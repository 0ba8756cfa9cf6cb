//! Tickets for PVE's local API. PVE's own code makes them; the agent never touches the cluster's key.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{process::Command, sync::Mutex};

use crate::error::Error;

/// A ticket is used for this long. PVE accepts it for two hours, but less around the daily rotation of its key.
const LIFETIME: Duration = Duration::from_secs(3600);
/// PVE's limit, less a margin: an old ticket is better than none while the command fails.
const LONGEST: Duration = Duration::from_secs(7000);
/// The command takes 0.2 to 0.3 s; on a host under load much longer.
const DEADLINE: Duration = Duration::from_secs(15);

/// The command that makes PVE's own code print a ticket for root@pam. `q()` keeps Perl from taking `@pam` for a variable.
pub(super) const COMMAND: &[&str] =
    &["/usr/bin/perl", "-MPVE::AccessControl", "-e", "print PVE::AccessControl::assemble_ticket(q(root@pam))"];

/// Makes tickets and keeps the last one.
#[derive(Debug)]
pub(super) struct Tickets {
    command: Vec<String>,
    /// Held while a ticket is made: all others wait for that one.
    last: Mutex<Option<(Arc<str>, Instant)>>,
}

impl Tickets {
    /// Tickets made by `command` (program and arguments), which prints one to its standard output.
    pub(super) fn new(command: Vec<String>) -> Self {
        Self { command, last: Mutex::new(None) }
    }

    /// A ticket. Errors: `PveDown`.
    pub(super) async fn get(&self) -> Result<Arc<str>, Error> {
        let mut last = self.last.lock().await;
        let age = last.as_ref().map(|(_, made)| made.elapsed());
        if let (Some((ticket, _)), Some(age)) = (&*last, age)
            && age < LIFETIME
        {
            return Ok(ticket.clone());
        }
        match (self.make().await, &*last, age) {
            (Ok(ticket), ..) => {
                let ticket: Arc<str> = ticket.into();
                *last = Some((ticket.clone(), Instant::now()));
                Ok(ticket)
            }
            (Err(error), Some((ticket, _)), Some(age)) if age < LONGEST => {
                tracing::warn!(%error, "no new ticket; the last one is still good");
                Ok(ticket.clone())
            }
            (Err(error), ..) => Err(error),
        }
    }

    /// Forgets a ticket that PVE refused, unless there is a newer one already.
    pub(super) async fn refused(&self, ticket: &str) {
        let mut last = self.last.lock().await;
        if last.as_ref().is_some_and(|(t, _)| &**t == ticket) {
            *last = None;
        }
    }

    #[allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "the host boundary is where processes are started")]
    async fn make(&self) -> Result<String, Error> {
        let down = |detail: String| Error::PveDown { detail };
        let Some((program, arguments)) = self.command.split_first() else { return Err(down("no ticket command is configured".into())) };
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(DEADLINE, command.output()).await {
            Err(_) => return Err(down(format!("{program} made no ticket within {} s", DEADLINE.as_secs()))),
            Ok(Err(error)) => return Err(down(format!("{program}: {error}"))),
            Ok(Ok(output)) => output,
        };
        let ticket = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || !ticket.starts_with("PVE:") || ticket.contains(char::is_whitespace) {
            let why = String::from_utf8_lossy(&output.stderr);
            let last_line = why.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it printed no ticket");
            return Err(down(format!("{program} ({}): {last_line}", output.status)));
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn counting(dir: &std::path::Path) -> Tickets {
        let script = format!("echo x >> '{0}/count'; echo PVE:root@pam:$(wc -l < '{0}/count'):: ", dir.display());
        Tickets::new(vec!["sh".into(), "-c".into(), script])
    }

    #[tokio::test]
    async fn callers_at_once_share_one_ticket() {
        let dir = tempfile::tempdir().unwrap();
        let tickets = counting(dir.path());
        let (a, b, c) = tokio::join!(tickets.get(), tickets.get(), tickets.get());
        assert_eq!((a.unwrap(), b.unwrap(), c.unwrap()), ("PVE:root@pam:1::".into(), "PVE:root@pam:1::".into(), "PVE:root@pam:1::".into()));
    }

    #[tokio::test]
    async fn a_refused_ticket_is_replaced_once() {
        let dir = tempfile::tempdir().unwrap();
        let tickets = counting(dir.path());
        let first = tickets.get().await.unwrap();
        tickets.refused(&first).await;
        let second = tickets.get().await.unwrap();
        assert_ne!(first, second);
        // The answer to an older call with the first ticket comes late.
        tickets.refused(&first).await;
        assert_eq!(tickets.get().await.unwrap(), second);
    }

    #[tokio::test]
    async fn a_command_that_prints_no_ticket_is_told() {
        for (script, what) in [("echo no >&2; exit 3", "no"), ("echo hello", "printed no ticket"), ("true", "printed no ticket")] {
            let error = Tickets::new(vec!["sh".into(), "-c".into(), script.into()]).get().await.unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        assert_eq!(Tickets::new(vec!["/nonexistent".into()]).get().await.unwrap_err().reason(), "PVE_DOWN");
    }
}
