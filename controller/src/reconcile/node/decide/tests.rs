#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;
use crate::{
    kind::{Seconds, TaintWish},
    nodes::Standing,
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
}

fn spec(failed_after: u32, well_after: u32) -> KubernetesNodeSpec {
    KubernetesNodeSpec {
        name: None,
        condition: true,
        taint: TaintWish::NoSchedule,
        groups: vec!["containerd".into()],
        failed_after: Seconds(failed_after),
        well_after: Seconds(well_after),
    }
}

fn told(level: Level) -> Seen {
    Seen::Told(Verdict { level, reason: "ContainerdUnit".into(), message: "it is dead".into() })
}

fn away() -> Seen {
    Seen::Away("HostUnreachable", "connecting".into())
}

/// The taint and the condition after each look, and when to look again.
fn run(spec: &KubernetesNodeSpec, looks: &[(i64, Seen)]) -> Vec<(bool, &'static str, String, Option<i64>)> {
    let mut memory = Memory::default();
    let look = |(second, seen): &(i64, Seen)| {
        let (wanted, due) = memory.look(seen, spec, at(*second));
        let condition = wanted.condition.unwrap();
        (wanted.taint.is_some(), condition.status, condition.reason, due.map(|d| d.as_second()))
    };
    looks.iter().map(look).collect()
}

#[test]
fn what_has_failed_for_long_enough_is_told_until_it_has_been_well_for_long_enough() {
    use Level::{Degraded, Failed, Unknown, Well};
    let found = run(
        &spec(30, 120),
        &[
            (0, told(Well)),
            (10, told(Failed)),
            (39, told(Failed)),
            (40, told(Failed)),
            (50, told(Well)),
            (60, told(Failed)),
            (70, told(Degraded)),
            (80, told(Unknown)),
            (90, told(Well)),
            (209, told(Well)),
            (210, told(Well)),
        ],
    );
    let (fine, bad) = (("True", "Healthy"), ("False", "ContainerdUnit"));
    let recovering = ("False", "Recovering");
    let want = [
        (false, fine, None),
        (false, fine, Some(40)),
        (false, fine, Some(40)),
        (true, bad, None),
        (true, recovering, Some(170)),
        (true, bad, None),
        (true, recovering, Some(190)),
        (true, bad, Some(110)),
        (true, recovering, Some(210)),
        (true, recovering, Some(210)),
        (false, fine, None),
    ];
    let found: Vec<_> = found.iter().map(|(taint, status, reason, due)| (*taint, (*status, reason.as_str()), *due)).collect();
    assert_eq!(found, want);
}

#[test]
fn a_host_that_cannot_be_asked_keeps_what_it_has() {
    let found = run(&spec(30, 60), &[(0, away()), (29, away()), (30, away()), (900, away()), (901, told(Level::Well))]);
    let taints: Vec<bool> = found.iter().map(|f| f.0).collect();
    let conditions: Vec<(&str, &str)> = found.iter().map(|f| (f.1, f.2.as_str())).collect();
    assert_eq!(taints, [false; 5]);
    let unknown = ("Unknown", "HostUnreachable");
    assert_eq!(conditions, [("True", "Healthy"), ("True", "Healthy"), unknown, unknown, ("True", "Healthy")]);
    let found =
        run(&spec(0, 60), &[(0, told(Level::Failed)), (5, away()), (900, away()), (901, told(Level::Well)), (961, told(Level::Well))]);
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [true, true, true, true, false]);
    assert_eq!(found.iter().map(|f| f.1).collect::<Vec<_>>(), ["False", "Unknown", "Unknown", "False", "True"]);
}

#[test]
fn failing_with_gaps_in_sight_counts_as_failing_all_the_time() {
    use Level::{Failed, Unknown};
    let found = run(&spec(30, 60), &[(0, told(Failed)), (10, told(Unknown)), (20, away()), (30, told(Failed))]);
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [false, false, false, true]);
}

#[test]
fn only_what_was_asked_for_is_wanted() {
    for (condition, taint, effect) in [
        (false, TaintWish::NoExecute, Some(Effect::NoExecute)),
        (true, TaintWish::None, None),
        (true, TaintWish::NoSchedule, Some(Effect::NoSchedule)),
    ] {
        let spec = KubernetesNodeSpec { condition, taint, ..spec(0, 0) };
        let (wanted, _) = Memory::default().look(&told(Level::Failed), &spec, at(0));
        assert_eq!((wanted.condition.is_some(), wanted.taint), (condition, effect));
        let (wanted, _) = Memory::default().look(&told(Level::Well), &spec, at(0));
        assert_eq!((wanted.condition.is_some(), wanted.taint), (condition, None));
    }
}

#[test]
fn only_what_differs_is_written_and_texts_not_often() {
    let standing = |status: &str, reason: &str, message: &str| {
        Some(Standing { status: status.into(), reason: reason.into(), message: message.into(), heartbeat: Some(at(100)) })
    };
    let wanted = |message: &str| Wanted {
        condition: Some(NodeCondition { status: "False", reason: "R".into(), message: message.into() }),
        taint: Some(Effect::NoSchedule),
    };
    let taint = || vec!["NoSchedule".to_owned()];
    type Row = (&'static str, Wanted, Option<Standing>, Vec<String>, i64, Writes);
    let rows: &[Row] = &[
        ("nothing there", wanted("m"), None, vec![], 100, Writes { condition: true, taint: true, due: None }),
        ("so already", wanted("m"), standing("False", "R", "m"), taint(), 100, Writes::default()),
        ("another status", wanted("m"), standing("True", "R", "m"), taint(), 100, Writes { condition: true, ..Writes::default() }),
        (
            "another text, too early",
            wanted("n"),
            standing("False", "R", "m"),
            taint(),
            130,
            Writes { due: Some(at(160)), ..Writes::default() },
        ),
        (
            "another reason, too early",
            wanted("m"),
            standing("False", "S", "m"),
            taint(),
            130,
            Writes { due: Some(at(160)), ..Writes::default() },
        ),
        ("another text, in time", wanted("n"), standing("False", "R", "m"), taint(), 160, Writes { condition: true, ..Writes::default() }),
        ("written in the future", wanted("n"), standing("False", "R", "m"), taint(), 50, Writes { condition: true, ..Writes::default() }),
        (
            "another effect",
            wanted("m"),
            standing("False", "R", "m"),
            vec!["NoExecute".into()],
            100,
            Writes { taint: true, ..Writes::default() },
        ),
        (
            "one too many",
            wanted("m"),
            standing("False", "R", "m"),
            vec!["NoExecute".into(), "NoSchedule".into()],
            100,
            Writes { taint: true, ..Writes::default() },
        ),
        ("nothing wanted, nothing there", Wanted::NOTHING, None, vec![], 100, Writes::default()),
        ("nothing wanted", Wanted::NOTHING, standing("True", "R", ""), taint(), 100, Writes { condition: true, taint: true, due: None }),
    ];
    for (name, wanted, condition, taints, now, want) in rows {
        let node = NodeView { condition: condition.clone(), taints: taints.clone(), kubelet: String::new() };
        assert_eq!(wanted.missing(&node, at(*now)), *want, "{name}");
    }
}

fn any_seen() -> impl Strategy<Value = Seen> {
    prop_oneof![Just(told(Level::Well)), Just(told(Level::Degraded)), Just(told(Level::Unknown)), Just(told(Level::Failed)), Just(away()),]
}

proptest! {
    /// Whatever comes: a host becomes not well only after it was found failed for long enough without being well in between, and well only
    /// after it was well for long enough without a break.
    #[test]
    fn a_taint_comes_and_goes_only_after_its_time(
        looks in proptest::collection::vec((1..40_i64, any_seen()), 1..300),
        failed_after in 0..100_u32,
        well_after in 0..100_u32,
    ) {
        let spec = spec(failed_after, well_after);
        let (mut memory, mut now, mut before) = (Memory::default(), 0, false);
        let mut history: Vec<(i64, Seen)> = Vec::new();
        for (pause, seen) in looks {
            now += pause;
            history.push((now, seen.clone()));
            let (wanted, due) = memory.look(&seen, &spec, at(now));
            let is = |level: &[Level], seen: &Seen| matches!(seen, Seen::Told(v) if level.contains(&v.level));
            let well = |seen: &Seen| is(&[Level::Well, Level::Degraded], seen);
            let after = wanted.taint.is_some();
            if after && !before {
                prop_assert!(is(&[Level::Failed], &seen));
                let unbroken: Vec<_> = history.iter().rev().take_while(|(_, s)| !well(s)).collect();
                let first = unbroken.iter().rev().find(|(_, s)| is(&[Level::Failed], s)).unwrap();
                prop_assert!(now - first.0 >= i64::from(failed_after));
            }
            if before && !after {
                let unbroken = history.iter().rev().take_while(|(_, s)| well(s)).last().unwrap();
                prop_assert!(now - unbroken.0 >= i64::from(well_after));
            }
            // Whoever looks again when told sees a change, or has nothing to wait for any more.
            if let Some(due) = due {
                prop_assert!(due.as_second() > now);
                let mut later = memory;
                let (changed, again) = later.look(&seen, &spec, due);
                prop_assert!(changed != wanted || again.is_none());
            }
            before = after;
        }
    }
}
