//! `pveletctl doctor`: what is not well, why it matters, and what to do.

use super::{RUNNING, gather, look, plain, span};
use crate::{
    agents::{AgentClient, AgentError, Cause, HostResult, fan_out},
    cli::{
        CliError, Exit, Session,
        args::Doctor,
        output,
        table::Look,
        view::{HealthCheckView, HealthView, HealthViews, State},
    },
};

pub(in crate::cli) async fn doctor(session: &Session, args: &Doctor) -> Result<Exit, CliError> {
    let running = session.deadline.max(RUNNING);
    let patience = if args.run { running + session.deadline } else { session.deadline };
    let results = fan_out(&session.agents, patience, |a| async move {
        if args.run {
            match run_all(&a.with_deadline(running)).await {
                // Where something hangs, what is known says so better than a deadline.
                Err(e) if matches!(e.cause, Cause::Deadline) => {
                    let name = a.name();
                    session
                        .io
                        .warn(&format!("{name}: not all checks came to their end within {} s; shown is what is known", running.as_secs()));
                }
                other => other?,
            }
        }
        Ok(HealthView::new(a.name(), &a.get_health(&[]).await?))
    })
    .await;
    let exit = verdict(&results);
    let all = gather(results);
    let colour = session.io.colour;
    output::print(&session.io, session.format, &all, |all| text(all, colour))?;
    session.tell_missing(&all.errors);
    Ok(exit)
}

/// Runs every check that there is.
async fn run_all(agent: &AgentClient) -> Result<(), AgentError> {
    let mut groups: Vec<String> = agent.get_health(&[]).await?.checks.into_iter().map(|c| c.group).collect();
    groups.sort();
    groups.dedup();
    if !groups.is_empty() {
        agent.run_checks(&groups).await?;
    }
    Ok(())
}

/// The worst of a host: what the agent says, and what its checks say.
fn worst(host: &HealthView) -> State {
    host.checks.iter().map(|c| c.state).min().unwrap_or(State::Ok).min(host.state)
}

fn verdict(results: &[HostResult<HealthView>]) -> Exit {
    let of = |r: &HostResult<HealthView>| match &r.result {
        Ok(host) => match worst(host) {
            State::Failed => Exit::Critical,
            State::Degraded | State::Unknown => Exit::Failed,
            State::Ok | State::NotApplicable => Exit::Ok,
        },
        Err(e) if e.unreachable() => Exit::Critical,
        Err(_) => Exit::Failed,
    };
    results.iter().map(of).max_by_key(|exit| *exit as u8).unwrap_or(Exit::Ok)
}

fn text(all: &HealthViews, colour: bool) -> String {
    let mut text = String::new();
    for host in &all.hosts {
        let state = worst(host);
        text += &paint(state, colour, &format!("{}: {}", host.host, state.word()));
        for group in groups(host) {
            let checks: Vec<&HealthCheckView> = host.checks.iter().filter(|c| c.group == group).collect();
            text += &group_text(&host.host, group, &checks, colour);
        }
        if let Some(repair) = host.repair.as_ref().filter(|r| r.latched) {
            let why = repair.latch_reason.as_deref().map(plain).unwrap_or_default();
            let line =
                format!("  nothing is repaired any more: {why}; look at the host, then pveletctl repair --clear --host {}", host.host);
            text += &paint(State::Failed, colour, &line);
        }
    }
    text + &summary(all, colour)
}

/// The groups in the order of the checks.
fn groups(host: &HealthView) -> Vec<&str> {
    let mut groups: Vec<&str> = host.checks.iter().map(|c| c.group.as_str()).collect();
    groups.dedup();
    groups
}

fn group_text(host: &str, group: &str, checks: &[&HealthCheckView], colour: bool) -> String {
    let state = checks.iter().map(|c| c.state).min().unwrap_or(State::NotApplicable);
    let counted = counts(checks.iter().copied());
    let mut text = match state {
        // Why it does not concern the host is the same for all of them.
        State::NotApplicable => {
            let why = checks.first().map(|c| plain(&c.seen)).filter(|s| !s.is_empty()).map(|s| format!(": {s}")).unwrap_or_default();
            paint(state, colour, &format!("  {group:<11} not applicable{why}"))
        }
        _ => paint(state, colour, &format!("  {group:<11} {} ({counted})", state.word())),
    };
    let mut bad: Vec<&&HealthCheckView> = checks.iter().filter(|c| c.state.is_bad()).collect();
    bad.sort_by_key(|c| c.state);
    for c in bad {
        let since = c.seconds.map(|s| format!(" for {}", span(s))).unwrap_or_default();
        text += &paint(c.state, colour, &format!("    {}: {}{since}", c.id, c.state.word()));
        let mut add = |name: &str, value: &str| {
            if !value.is_empty() {
                text += &format!("      {name:<8}{value}\n");
            }
        };
        add("seen:", &plain(&c.seen));
        add("why:", &plain(&c.why));
        add("remedy:", &c.remedy.as_deref().map(plain).unwrap_or_default());
        if let Some(repair) = &c.repair {
            add("mend:", &format!("pveletctl repair {} --host {host}  ({})", c.id, plain(repair)));
        }
    }
    text
}

fn paint(state: State, colour: bool, line: &str) -> String {
    let look = if state == State::Ok { Look::Good } else { look(state) };
    look.paint(colour, line) + "\n"
}

fn summary(all: &HealthViews, colour: bool) -> String {
    let checks = || all.hosts.iter().flat_map(|h| &h.checks);
    let worst = all.hosts.iter().map(worst).min().unwrap_or(State::Ok);
    let missing = match all.errors.len() {
        0 => String::new(),
        n => format!("; {n} of {} hosts told nothing", n + all.hosts.len()),
    };
    let state = if all.errors.is_empty() { worst } else { worst.min(State::Unknown) };
    paint(state, colour, &format!("{} checks, {}{missing}", checks().count(), counts(checks())))
}

/// `10 ok, 1 failed`: how many of each, those that are well always.
fn counts<'a>(checks: impl Iterator<Item = &'a HealthCheckView> + Clone) -> String {
    let count = |state| checks.clone().filter(|c| c.state == state).count();
    let mut text = format!("{} ok", count(State::Ok));
    for state in [State::Failed, State::Degraded, State::Unknown, State::NotApplicable] {
        match count(state) {
            0 => {}
            n => text += &format!(", {n} {}", state.word()),
        }
    }
    text
}
