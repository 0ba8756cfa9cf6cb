//! The network's preflight as health: what will keep changes from being made, or hurt without one.

use std::time::Duration;

use super::{Check, Finding, Group, Pace, Source, State};
use crate::network::{
    Networks,
    preflight::{self, RULES, Severity},
};

/// Hundreds of links and VMs are read; what is declared changes by hand.
const PERIODS: u32 = 6;
/// The kernel and the files answer at once, the cluster file system within three seconds or never.
const DEADLINE: Duration = Duration::from_secs(20);

/// Its checks, those of the preflight.
pub(super) static CHECKS: [Check; RULES.len()] = checks();

const fn checks() -> [Check; RULES.len()] {
    let mut all = [Check { id: "", group: Group::Network, why: "" }; RULES.len()];
    let mut n = 0;
    while n < RULES.len() {
        all[n] = Check { id: RULES[n].id, group: Group::Network, why: RULES[n].why };
        n += 1;
    }
    all
}

/// The preflight of the host's network, with no change in mind.
pub struct Preflight {
    networks: Networks,
    period: Duration,
}

impl Preflight {
    /// Of this network; `period`: that of a cheap check.
    pub fn new(networks: Networks, period: Duration) -> Self {
        Self { networks, period: period * PERIODS }
    }
}

#[tonic::async_trait]
impl Source for Preflight {
    fn name(&self) -> &'static str {
        "network"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        Pace { period: self.period, deadline: DEADLINE }
    }

    async fn look(&self) -> Vec<Finding> {
        match self.networks.preflight().await {
            Ok(checks) => checks.into_iter().map(finding).collect(),
            Err(error) => CHECKS.iter().map(|c| Finding::unknown(c.id, error.to_string())).collect(),
        }
    }
}

/// A check of the preflight as a finding. None of them is a failure: the network as it is works, but changes are refused, or it will hurt.
fn finding(check: preflight::Check) -> Finding {
    use preflight::State as S;
    let state = match (check.state, check.severity) {
        (S::NotApplicable, _) => State::NotApplicable,
        (S::Unknown, _) => State::Unknown,
        (S::Failed, Severity::Error | Severity::Warning) => State::Degraded,
        (S::Ok, _) | (S::Failed, Severity::Info) => State::Ok,
    };
    let remedy = if state == State::Ok { String::new() } else { check.remedy };
    Finding { remedy, subjects: check.interfaces, ..Finding::new(check.id, state, check.seen) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_changes_or_will_hurt_is_degraded_and_never_failed() {
        use preflight::State as S;
        let table = [
            (S::Ok, Severity::Error, State::Ok, ""),
            (S::Failed, Severity::Error, State::Degraded, "do"),
            (S::Failed, Severity::Warning, State::Degraded, "do"),
            (S::Failed, Severity::Info, State::Ok, ""),
            (S::Unknown, Severity::Error, State::Unknown, "do"),
            (S::NotApplicable, Severity::Error, State::NotApplicable, "do"),
        ];
        for (state, severity, wanted, remedy) in table {
            let check = preflight::Check {
                id: RULES[0].id,
                state,
                severity,
                seen: "eno1".into(),
                why: "",
                remedy: "do".into(),
                interfaces: vec!["eno1".into()],
            };
            let found = finding(check);
            assert_eq!((found.state, found.remedy.as_str(), found.seen.as_str()), (wanted, remedy, "eno1"), "{state:?} {severity:?}");
            assert_eq!(found.subjects, ["eno1"]);
        }
    }
}
