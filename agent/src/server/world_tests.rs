//! All checks of an agent, and their table in the documentation.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::{
    config::defaults,
    health::{Check, Group},
    server::testing::StillPve,
};

/// Every check but those of the network and of the agent, and how often it runs.
fn looked_at() -> Vec<(Check, Duration)> {
    let (config, _) = config::parse("[tls]\ntrust_domain = \"a.b\"\n[pve]\nnode = \"pve1\"\n").unwrap();
    let pve: Arc<dyn Pve> = StillPve::new(&[]);
    let sources = outside(&config, &pve, Arc::new(SystemdUnits::new())).sources;
    let mut all: Vec<(Check, Duration)> = sources.iter().flat_map(|s| s.checks().iter().map(|c| (*c, s.pace().period))).collect();
    all.sort_by_key(|(c, _)| (c.group, c.id));
    all
}

fn shown(period: Duration) -> String {
    match period.as_secs() {
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

#[tokio::test]
async fn each_check_has_one_source_and_an_id_of_its_group() {
    let all = looked_at();
    let ids: BTreeSet<&str> = all.iter().map(|(c, _)| c.id).collect();
    assert_eq!(ids.len(), all.len(), "{all:?}");
    for (check, period) in all {
        assert!(check.id.strip_prefix(check.group.as_str()).is_some_and(|rest| rest.starts_with('.')), "{check:?}");
        assert!(check.why.ends_with('.') && check.why.starts_with(char::is_uppercase), "{check:?}: one sentence");
        assert!(!check.why.contains('|'), "{check:?}: it stands in a table");
        assert!(period >= Duration::from_secs(1), "{check:?}");
    }
}

#[tokio::test]
async fn the_table_of_the_documentation_lists_each_check_with_its_period_and_why_it_matters() {
    let docs = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/health.md"));
    let in_docs = |group: Group| -> Vec<String> {
        let lead = format!("| `{}.", group.as_str());
        let cells = |line: &str| line.split(" | ").take(3).collect::<Vec<_>>().join(" | ");
        docs.lines().filter(|l| l.starts_with(&lead)).map(cells).collect()
    };
    let own = |c: &Check| (*c, defaults::HEALTH_PERIOD);
    let agent = crate::health::AGENT_CHECKS.iter().map(own);
    let all: Vec<(Check, Duration)> = looked_at().into_iter().chain(agent).collect();
    for group in [Group::Containerd, Group::Kubelet, Group::Host, Group::Agent] {
        let row = |(c, period): &(Check, Duration)| format!("| `{}` | {} | {}", c.id, shown(*period), c.why);
        let wanted: Vec<String> = all.iter().filter(|(c, _)| c.group == group).map(row).collect();
        assert_eq!(
            in_docs(group),
            wanted,
            "the table \"{}\" in docs/health.md; it should begin with\n{}",
            group.as_str(),
            wanted.join("\n")
        );
    }
}
