//! Health as the API shows it.

use std::time::SystemTime;

use pvelet_proto::v1;

use super::{Known, Overall, State};

/// A state.
pub fn state(state: State) -> v1::CheckState {
    match state {
        State::NotApplicable => v1::CheckState::NotApplicable,
        State::Ok => v1::CheckState::Ok,
        State::Unknown => v1::CheckState::Unknown,
        State::Degraded => v1::CheckState::Degraded,
        State::Failed => v1::CheckState::Failed,
    }
}

/// A check.
pub fn check(known: &Known) -> v1::HealthCheck {
    let Known { check, finding, since, observed } = known;
    v1::HealthCheck {
        id: check.id.to_owned(),
        group: check.group.as_str().to_owned(),
        state: state(finding.state).into(),
        since: Some((*since).into()),
        observe_time: observed.map(Into::into),
        seen: finding.seen.clone(),
        why: check.why.to_owned(),
        remedy: finding.remedy.clone(),
        subjects: finding.subjects.clone(),
        repair: finding.mend.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// Some checks or all, and how the host is.
pub fn health<'a>(overall: Overall, checks: impl IntoIterator<Item = &'a Known>, repair: v1::RepairStatus, now: SystemTime) -> v1::Health {
    v1::Health {
        state: state(overall.state).into(),
        since: Some(overall.since.into()),
        checks: checks.into_iter().map(check).collect(),
        repair: Some(repair),
        time: Some(now.into()),
    }
}
