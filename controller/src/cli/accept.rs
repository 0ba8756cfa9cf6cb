//! `pveletctl accept-controller`.

use pvelet_proto::v1::{self, ControllerEpoch};
use serde::Serialize;

use super::{CliError, Exit, Session, act, args::AcceptController, error::of_many, output, view::ErrorView};
use crate::agents::fan_out;

/// What every host answered.
#[derive(Debug, Serialize)]
struct Accepted {
    accepted: Vec<AcceptedView>,
    errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
struct AcceptedView {
    host: String,
    now: EpochView,
    /// What it held before; null where it did not know the controller.
    previous: Option<EpochView>,
}

#[derive(Debug, Serialize)]
struct EpochView {
    controller: String,
    lease_uid: String,
    transitions: u64,
}

impl From<&ControllerEpoch> for EpochView {
    fn from(e: &ControllerEpoch) -> Self {
        Self { controller: e.controller.clone(), lease_uid: e.lease_uid.clone(), transitions: e.transitions }
    }
}

pub(super) async fn accept(session: &Session, args: &AcceptController) -> Result<Exit, CliError> {
    let epoch = ControllerEpoch { controller: args.name.clone(), lease_uid: args.lease.clone(), transitions: args.transitions };
    if !args.yes {
        act::need_terminal(session, "accept-controller")?;
        session.io.note(&format!(
            "From now on only controller '{}' with lease {} is obeyed. One that still runs under the lease before is refused.",
            args.name, args.lease
        ));
        if !act::confirm(session, "Accept it? [y/N] ")? {
            session.io.note("nothing was changed");
            return Ok(Exit::Failed);
        }
    }
    let asked = fan_out(&session.agents, session.deadline, |a| {
        let request = v1::AcceptControllerRequest { epoch: Some(epoch.clone()) };
        async move { a.answer(a.host().accept_controller(request).await) }
    })
    .await;
    let mut all = Accepted { accepted: Vec::new(), errors: Vec::new() };
    for r in &asked {
        match &r.result {
            Ok(answer) => all.accepted.push(AcceptedView {
                host: r.host.clone(),
                now: EpochView::from(&epoch),
                previous: answer.previous.as_ref().map(EpochView::from),
            }),
            Err(e) => all.errors.push(ErrorView::from(e)),
        }
    }
    output::print(&session.io, session.format, &all, |all| all.accepted.iter().map(line).collect())?;
    for e in &all.errors {
        session.io.error(&format!("{}: {}", e.host, e.message));
    }
    Ok(of_many(asked.len(), asked.iter().filter_map(|r| r.result.as_ref().err())))
}

fn line(a: &AcceptedView) -> String {
    let before = a.previous.as_ref().map_or_else(|| "was not known".to_owned(), |p| format!("before lease {}", p.lease_uid));
    format!("{}: controller '{}' accepted with lease {} ({before})\n", a.host, a.now.controller, a.now.lease_uid)
}
