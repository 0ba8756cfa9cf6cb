//! A host's health in JSON and YAML.

use pvelet_proto::v1::{self, CheckState};
use serde::Serialize;

use super::{ErrorView, OperationView, some, time, word};

/// The groups, in the order in which people read them. An agent may have others.
pub(in crate::cli) const GROUPS: [&str; 5] = ["containerd", "kubelet", "host", "network", "agent"];

/// How a check came out, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum State {
    Failed,
    Degraded,
    Unknown,
    Ok,
    NotApplicable,
}

impl State {
    /// As people read it.
    pub(in crate::cli) fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Degraded => "degraded",
            Self::Unknown => "unknown",
            Self::Ok => "ok",
            Self::NotApplicable => "not applicable",
        }
    }

    /// Whether somebody should look at it.
    pub(in crate::cli) fn is_bad(self) -> bool {
        self < Self::Ok
    }
}

impl From<CheckState> for State {
    fn from(state: CheckState) -> Self {
        match state {
            CheckState::Failed => Self::Failed,
            CheckState::Degraded => Self::Degraded,
            // What a newer agent may tell is not taken for well.
            CheckState::Unknown | CheckState::Unspecified => Self::Unknown,
            CheckState::Ok => Self::Ok,
            CheckState::NotApplicable => Self::NotApplicable,
        }
    }
}

/// `health`, `doctor`, `check run`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct HealthViews {
    pub(in crate::cli) hosts: Vec<HealthView>,
    pub(in crate::cli) errors: Vec<ErrorView>,
}

/// How a host is.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct HealthView {
    pub(in crate::cli) host: String,
    /// "ok", "degraded", "failed", "unknown"; of the whole host, whichever checks are shown.
    pub(in crate::cli) state: State,
    pub(in crate::cli) since: Option<String>,
    /// By group and id.
    pub(in crate::cli) checks: Vec<HealthCheckView>,
    /// Null where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) repair: Option<RepairStatusView>,
}

#[derive(Debug, Clone, Serialize)]
pub(in crate::cli) struct HealthCheckView {
    pub(in crate::cli) id: String,
    pub(in crate::cli) group: String,
    /// "ok", "degraded", "failed", "unknown", "not_applicable".
    pub(in crate::cli) state: State,
    pub(in crate::cli) since: Option<String>,
    /// How long it has been in this state, by the host's clock.
    pub(in crate::cli) seconds: Option<i64>,
    /// Null before it ran for the first time.
    pub(in crate::cli) observe_time: Option<String>,
    pub(in crate::cli) seen: String,
    pub(in crate::cli) why: String,
    /// Null where nothing needs to be done.
    pub(in crate::cli) remedy: Option<String>,
    /// Units, files, storages, interfaces.
    pub(in crate::cli) subjects: Vec<String>,
    /// What `repair` would do; null where it cannot mend it.
    pub(in crate::cli) repair: Option<String>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct RepairStatusView {
    /// "off", "on_request", "automatic".
    pub(in crate::cli) policy: String,
    pub(in crate::cli) latched: bool,
    pub(in crate::cli) latch_reason: Option<String>,
    in_last_hour: u32,
    limit_per_hour: u32,
    /// Null where there was none.
    pub(in crate::cli) last_operation: Option<String>,
}

impl HealthView {
    pub(in crate::cli) fn new(host: &str, h: &v1::Health) -> Self {
        Self {
            host: host.to_owned(),
            state: h.state().into(),
            since: h.since.as_ref().and_then(time),
            checks: views(&h.checks, h.time.as_ref()),
            repair: h.repair.as_ref().map(RepairStatusView::from),
        }
    }

    /// Of checks that were run by themselves.
    pub(in crate::cli) fn of_checks(host: &str, checks: &[v1::HealthCheck]) -> Self {
        let checks = views(checks, None);
        let state = checks.iter().map(|c| c.state).min().unwrap_or(State::Unknown).min(State::Ok);
        Self { host: host.to_owned(), state, since: None, checks, repair: None }
    }
}

/// In the order of groups and ids.
fn views(checks: &[v1::HealthCheck], now: Option<&prost_types::Timestamp>) -> Vec<HealthCheckView> {
    let mut all: Vec<HealthCheckView> = checks.iter().map(|c| HealthCheckView::new(c, now)).collect();
    let place = |c: &HealthCheckView| GROUPS.iter().position(|g| *g == c.group).unwrap_or(GROUPS.len());
    all.sort_by(|a, b| (place(a), &a.group, &a.id).cmp(&(place(b), &b.group, &b.id)));
    all
}

impl HealthCheckView {
    /// `now` is the host's clock; when the check was last seen where that is not told.
    pub(in crate::cli) fn new(c: &v1::HealthCheck, now: Option<&prost_types::Timestamp>) -> Self {
        let seconds = c.since.as_ref().zip(now.or(c.observe_time.as_ref())).map(|(since, now)| (now.seconds - since.seconds).max(0));
        Self {
            seconds,
            id: c.id.clone(),
            group: c.group.clone(),
            state: c.state().into(),
            since: c.since.as_ref().and_then(time),
            observe_time: c.observe_time.as_ref().and_then(time),
            seen: c.seen.clone(),
            why: c.why.clone(),
            remedy: some(&c.remedy),
            subjects: c.subjects.clone(),
            repair: some(&c.repair),
        }
    }
}

impl From<&v1::RepairStatus> for RepairStatusView {
    fn from(r: &v1::RepairStatus) -> Self {
        Self {
            policy: word(r.policy().as_str_name(), "REPAIR_POLICY_"),
            latched: r.latched,
            latch_reason: some(&r.latch_reason),
            in_last_hour: r.in_last_hour,
            limit_per_hour: r.limit_per_hour,
            last_operation: some(&r.last_operation),
        }
    }
}

/// A line of `health --watch`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct HealthEventView {
    pub(in crate::cli) host: String,
    /// By the host's clock.
    pub(in crate::cli) time: Option<String>,
    /// Null where it has not been told before.
    pub(in crate::cli) was: Option<State>,
    pub(in crate::cli) check: HealthCheckView,
}

/// `repair`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct MendedView {
    pub(in crate::cli) host: String,
    /// The check that was named, or found.
    pub(in crate::cli) check: String,
    pub(in crate::cli) plan: RepairPlanView,
    /// Null where nothing was sent.
    pub(in crate::cli) operation: Option<OperationView>,
    /// The checks of the plan, as they are afterwards; none where it was not waited for.
    pub(in crate::cli) checks: Vec<HealthCheckView>,
}

#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct RepairPlanView {
    pub(in crate::cli) checks: Vec<String>,
    /// Null where no file is edited.
    pub(in crate::cli) file: Option<String>,
    /// A unified diff.
    pub(in crate::cli) file_diff: String,
    /// In this order.
    pub(in crate::cli) units: Vec<String>,
}

/// `repair --clear`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct ClearedView {
    pub(in crate::cli) host: String,
    pub(in crate::cli) was_latched: bool,
}

/// A plan as it is shown.
pub(in crate::cli) fn plan_view(plan: Option<v1::RepairPlan>) -> RepairPlanView {
    let v1::RepairPlan { checks, file, file_diff, units } = plan.unwrap_or_default();
    RepairPlanView { checks, file: some(&file), file_diff, units }
}
