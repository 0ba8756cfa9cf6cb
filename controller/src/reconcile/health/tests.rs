#![allow(clippy::unwrap_used)]
use std::time::Duration;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::{steady::HOLD, *};
use crate::agents::fake::health::check;

const T0: Timestamp = Timestamp::UNIX_EPOCH;

fn at(seconds: i64) -> Timestamp {
    T0 + SignedDuration::from_secs(seconds)
}

/// Health with these checks.
pub(in crate::reconcile) fn health(checks: &[(&str, CheckState)]) -> Health {
    let checks = checks.iter().map(|(id, state)| check(id, *state)).collect();
    Health::default().take(&v1::Health { checks, ..v1::Health::default() }, true, &Names::default())
}

#[test]
fn the_worst_check_of_a_group_gives_the_condition() {
    use CheckState::{Degraded, Failed, NotApplicable, Ok, Unknown};
    use ConditionStatus as S;
    type Row<'a> = (&'a str, &'a [(&'a str, CheckState)], S, &'a str);
    let rows: &[Row<'_>] = &[
        ("all well", &[("containerd.unit", Ok), ("containerd.cni", NotApplicable)], S::True, "AllChecksOk"),
        ("nothing concerns it", &[("containerd.unit", NotApplicable)], S::True, "NotApplicable"),
        ("degraded works", &[("containerd.image-fs", Degraded), ("containerd.unit", Ok)], S::True, "ContainerdImageFs"),
        (
            "unknown is not well",
            &[("containerd.responding", Unknown), ("containerd.image-fs", Degraded)],
            S::Unknown,
            "ContainerdResponding",
        ),
        (
            "failed is the worst",
            &[("containerd.responding", Unknown), ("containerd.runtime-type", Failed)],
            S::False,
            "ContainerdRuntimeType",
        ),
        ("of two the first", &[("containerd.b", Failed), ("containerd.a", Failed)], S::False, "ContainerdA"),
        ("no such checks", &[("host.quorum", Ok)], S::Unknown, "NoChecks"),
        ("a state of a later version", &[("containerd.x", CheckState::Unspecified)], S::Unknown, "ContainerdX"),
    ];
    for (name, checks, status, reason) in rows {
        let verdict = health(checks).verdict("pve1", &["containerd"]);
        assert_eq!((verdict.status(), verdict.reason.as_str()), (*status, *reason), "{name}");
    }
    assert_eq!((word("net.source-line"), word("7.x"), word("")), ("NetSourceLine".into(), "Check7X".into(), "Check".into()));
}

#[test]
fn a_message_holds_the_worst_findings_with_remedies_and_is_bounded() {
    let mut checks: Vec<v1::HealthCheck> = (0..40).map(|i| check(&format!("host.c{i:02}"), CheckState::Degraded)).collect();
    checks[7] = v1::HealthCheck { seen: "é".repeat(5000), remedy: "x".repeat(5000), ..check("host.c07", CheckState::Failed) };
    let told = v1::Health { checks, ..v1::Health::default() };
    let message = Health::default().take(&told, true, &Names::default()).verdict("pve1", &["host"]).message;
    assert!(message.starts_with("host.c07 is failed: ééé") && message.contains("...; xxx"), "{message}");
    assert!(message.contains(". host.c00 is degraded: host.c00 is not as it should be; put host.c00 right. host.c01 is"), "{message}");
    assert!(message.ends_with(". And 37 more: pveletctl doctor pve1") && message.chars().count() < 2048, "{message}");
}

#[test]
fn changes_are_laid_over_what_was_told_and_a_whole_answer_replaces_it() {
    let before = health(&[("host.a", CheckState::Failed), ("host.b", CheckState::Failed)]);
    let change = |ids: &[&str]| v1::Health { checks: ids.iter().map(|id| check(id, CheckState::Ok)).collect(), ..v1::Health::default() };
    assert_eq!(before.take(&change(&["host.a"]), false, &Names::default()).verdict("", &["host"]).reason, "HostB");
    assert_eq!(before.take(&change(&["host.a"]), true, &Names::default()).verdict("", &["host"]).reason, "AllChecksOk");
}

#[test]
fn clocks_are_compared_at_half_of_the_round_trip_and_told_with_a_margin() {
    let measured = Clock::measured(at(10) + SignedDuration::from_millis(2500), at(10), Duration::from_secs(1));
    assert_eq!(measured, Clock { ahead: 2000, error: 500 });
    let mut apart = false;
    for (ahead, error, want, text) in [
        (0, 0, "InSync", ""),
        (2400, 500, "InSync", ""),
        (2600, 500, "ClockAhead", "more than 1 s ahead of"),
        (1500, 0, "ClockAhead", "more than 1 s ahead of"),
        (900, 0, "InSync", ""),
        (1500, 0, "InSync", ""),
        (-90_000, 0, "ClockBehind", "more than a minute behind"),
        (i64::MIN, 0, "ClockBehind", "more than a day behind"),
        (5_000, 9_000, "InSync", ""),
    ] {
        let verdict = clock(Some(Clock { ahead: ahead.max(-i64::MAX), error }), &mut apart);
        assert_eq!(verdict.reason, want, "{ahead} {error}");
        assert!(verdict.message.contains(text), "{}", verdict.message);
    }
    assert_eq!(clock(None, &mut apart).reason, "NotMeasured");
}

#[test]
fn without_health_the_conditions_say_why() {
    let mut conditions = Conditions::default();
    let told = HealthSight::Told(Arc::new(health(&[("host.a", CheckState::Failed)])));
    for (up, sight, reason) in [
        (true, HealthSight::Awaited, "Awaited"),
        (true, told.clone(), "HostA"),
        (false, told.clone(), "NotReachable"),
        (true, HealthSight::NotOffered, "NotOffered"),
        (true, HealthSight::Lost("refused".into()), "NotTold"),
    ] {
        let (all, _) = conditions.settle("pve1", up, &sight, T0);
        assert_eq!(all.len(), 6);
        let (_, verdict) = all.iter().find(|(kind, _)| *kind == "HostHealthy").unwrap();
        assert_eq!(verdict.reason, reason);
    }
}

fn verdict(level: Level, message: u8) -> Verdict {
    Verdict::new(level, "R", message.to_string())
}

#[test]
fn worse_is_shown_at_once_and_better_after_a_while() {
    let mut steady = Steady::default();
    let mut show = |seconds, level, message| {
        let (shown, due) = steady.settle(verdict(level, message), at(seconds));
        (shown.level, shown.message, due.map(|d| d.as_second()))
    };
    assert_eq!(show(0, Level::Well, 0), (Level::Well, "0".into(), None));
    assert_eq!(show(1, Level::Failed, 1), (Level::Failed, "1".into(), None));
    assert_eq!(show(2, Level::Well, 0), (Level::Failed, "1".into(), Some(12)));
    assert_eq!(show(9, Level::Degraded, 2), (Level::Failed, "1".into(), Some(12)));
    // It was not better all the time.
    assert_eq!(show(10, Level::Failed, 1), (Level::Failed, "1".into(), None));
    assert_eq!(show(11, Level::Well, 0), (Level::Failed, "1".into(), Some(21)));
    assert_eq!(show(21, Level::Well, 0), (Level::Well, "0".into(), None));
    // Another text for the same.
    assert_eq!(show(22, Level::Well, 3), (Level::Well, "0".into(), Some(31)));
    assert_eq!(show(31, Level::Well, 4), (Level::Well, "4".into(), None));
}

proptest! {
    /// However a check flaps: what is shown is never better than what was found, changes at most twice in any ten seconds, and in the end is
    /// what was found.
    #[test]
    fn what_flaps_is_told_rarely_and_never_too_well(found in proptest::collection::vec((0..4_usize, 0..2_u8), 1..200)) {
        const LEVELS: [Level; 4] = [Level::Well, Level::Degraded, Level::Unknown, Level::Failed];
        let (mut steady, mut shown, mut changes) = (Steady::default(), None, Vec::new());
        for (second, (level, message)) in found.iter().enumerate() {
            let second = i64::try_from(second).unwrap();
            let found = verdict(LEVELS[*level], *message);
            let (now, _) = steady.settle(found.clone(), at(second));
            prop_assert!(now.level >= found.level);
            if shown.as_ref() != Some(&now) {
                changes.push(second);
                shown = Some(now);
            }
        }
        // Between two that were not for the worse there are ten seconds; worse it can become three times before it must become better.
        for window in changes.windows(5) {
            prop_assert!(window[4] - window[0] >= HOLD.as_secs(), "{changes:?}");
        }
        let last = found.last().unwrap();
        let last = verdict(LEVELS[last.0], last.1);
        let end = i64::try_from(found.len()).unwrap();
        let (_, due) = steady.settle(last.clone(), at(end));
        let settled = due.map_or(at(end), |due| due);
        prop_assert_eq!(steady.settle(last.clone(), settled).0, last);
    }
}
