//! Commands that only look, at hosts' health.

mod doctor;
mod watch;

use std::time::Duration;

pub(in crate::cli) use doctor::doctor;

use super::{errors, views};
use crate::{
    agents::{HostResult, fan_out},
    cli::{
        CliError, Exit, Session,
        args::{Format, Health, RunChecks},
        error::of_many,
        output,
        table::{Look, Rows},
        view::{HealthCheckView, HealthView, HealthViews, State},
    },
};

/// How long checks that are run now may take on a host: the slowest of them makes and removes a pod sandbox.
const RUNNING: Duration = Duration::from_secs(60);

pub(in crate::cli) async fn health(session: &Session, args: &Health) -> Result<Exit, CliError> {
    if args.watch {
        return watch::watch(session, args).await;
    }
    let results = fan_out(&session.agents, session.deadline, |a| async move {
        let health = a.get_health(&args.groups).await?;
        Ok(HealthView::new(a.name(), &health))
    })
    .await;
    show(session, results, args.all)
}

pub(in crate::cli) async fn run(session: &Session, args: &RunChecks) -> Result<Exit, CliError> {
    let patience = session.deadline.max(RUNNING);
    let results = fan_out(&session.agents, patience, |a| async move {
        let checks = a.with_deadline(patience).run_checks(&args.checks).await?;
        Ok(HealthView::of_checks(a.name(), &checks))
    })
    .await;
    show(session, results, args.all)
}

fn show(session: &Session, results: Vec<HostResult<HealthView>>, whole: bool) -> Result<Exit, CliError> {
    let exit = of_many(results.len(), errors(&results));
    let all = gather(results);
    let (wide, colour) = (session.format == Format::Wide, session.io.colour);
    output::print(&session.io, session.format, &all, |all| table(all, wide, whole).render(colour, ""))?;
    session.tell_missing(&all.errors);
    Ok(exit)
}

fn gather(results: Vec<HostResult<HealthView>>) -> HealthViews {
    let errors = views(&results);
    HealthViews { hosts: results.into_iter().filter_map(|r| r.result.ok()).collect(), errors }
}

fn table(all: &HealthViews, wide: bool, whole: bool) -> Rows {
    let header: &'static [&'static str] = if wide {
        &["HOST", "CHECK", "STATE", "FOR", "OBSERVED", "ABOUT", "SEEN", "WHY", "REMEDY", "REPAIR"]
    } else {
        &["HOST", "CHECK", "STATE", "FOR", "SEEN"]
    };
    let mut rows = Rows::new(header);
    for host in &all.hosts {
        for c in host.checks.iter().filter(|c| whole || c.state != State::NotApplicable) {
            let mut cells = vec![host.host.clone(), c.id.clone(), c.state.word().to_owned(), c.seconds.map(span).unwrap_or_default()];
            if wide {
                cells.push(c.observe_time.clone().unwrap_or_default());
                cells.push(c.subjects.join(","));
            }
            cells.push(plain(&c.seen));
            if wide {
                cells.extend([plain(&c.why), c.remedy.as_deref().map(plain).unwrap_or_default(), c.repair.clone().unwrap_or_default()]);
            }
            rows.add(look(c.state), cells);
        }
    }
    rows
}

fn look(state: State) -> Look {
    match state {
        State::Failed => Look::Bad,
        State::Degraded | State::Unknown => Look::Warn,
        State::Ok => Look::Plain,
        State::NotApplicable => Look::Dim,
    }
}

/// One line without anything that moves a terminal's cursor: what was seen comes from files and journals of the host.
fn plain(text: &str) -> String {
    text.split(char::is_control).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A span of time in its largest unit, and the one below.
fn span(seconds: i64) -> String {
    const UNITS: [(i64, char); 4] = [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
    let Some(first) = UNITS.iter().position(|(size, _)| seconds >= *size) else { return "0s".to_owned() };
    let (size, unit) = UNITS[first];
    let whole = format!("{}{unit}", seconds / size);
    match UNITS.get(first + 1).map(|(below, unit)| (seconds % size / below, unit)) {
        // From days on the hours tell something only for the first of them.
        Some((rest, unit)) if rest > 0 && seconds / size < 10 => format!("{whole}{rest}{unit}"),
        _ => whole,
    }
}

/// A check in one line.
pub(in crate::cli) fn line(c: &HealthCheckView) -> String {
    format!("{}  {}  {}", c.id, c.state.word(), plain(&c.seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_at_most_two_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (61, "1m1s"), (3600, "1h"), (7265, "2h1m"), (90_000, "1d1h"), (900_000, "10d"), (725, "12m")]
        {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn nothing_of_a_finding_moves_the_cursor() {
        assert_eq!(plain("a\u{1b}[31m b\r\n  c"), "a [31m b c");
    }
}
