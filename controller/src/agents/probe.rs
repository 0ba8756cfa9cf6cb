//! Trying an interface of one host against the same interface of another, with real frames.

use std::time::Duration;

use pvelet_proto::v1::{self, probe_network_request::Probe as Kind};
use uuid::Uuid;

use super::{AgentClient, AgentError};

/// How long the sender tries.
const SEND: Duration = Duration::from_secs(3);
/// How long the other end answers: longer, so that it does so from before the first frame until after the last.
const ANSWER: Duration = Duration::from_secs(5);
/// A call takes as long as it tries, and its way there and back.
const CALL: Duration = Duration::from_secs(10);
/// Once more where nothing came: the other end may not have listened in time.
const TRIES: u32 = 2;

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The interface that sends.
    pub interface: String,
    /// The one of the other host, that answers.
    pub at_peer: String,
    /// The VLAN, of a VLAN-aware bridge; otherwise 0.
    pub vlan: u32,
    /// The MTU that must get through; nothing for the smaller one of both ends' interfaces.
    pub mtu: Option<u32>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probed {
    /// How many answers came.
    pub answers: u32,
    /// The largest MTU of which an answer came; 0 for none.
    pub largest_mtu: u32,
    /// The MTU that had to get through.
    pub wanted_mtu: u32,
    /// Time from the first probe to its answer, in microseconds.
    pub rtt_us: u64,
    /// What is wrong, with the remedy; nothing where all got through.
    pub problem: Option<String>,
}

type Answer = Result<v1::ProbeNetworkResponse, AgentError>;

/// Lets `to` answer while `from` sends, under a token of its own.
pub async fn probe(from: &AgentClient, to: &AgentClient, what: &Probe) -> Probed {
    let mut tried = 1;
    loop {
        let token = Uuid::new_v4().to_string();
        let answer = call(to, &what.at_peer, what.vlan, Kind::Answer(v1::ProbeAnswer { token: token.clone() }), ANSWER);
        let send = call(from, &what.interface, what.vlan, Kind::Send(v1::ProbeSend { token, mtus: mtus(what) }), SEND);
        let (answer, send) = futures_util::join!(answer, send);
        let found = judge(what, to.name(), &answer, &send);
        if found.problem.is_none() || tried == TRIES {
            return found;
        }
        tried += 1;
    }
}

async fn call(agent: &AgentClient, interface: &str, vlan: u32, kind: Kind, time: Duration) -> Answer {
    let request = v1::ProbeNetworkRequest {
        interface: interface.to_owned(),
        vlan,
        probe: Some(kind),
        timeout: prost_types::Duration::try_from(time).ok(),
    };
    agent.answer(agent.with_deadline(CALL).network().probe_network(request).await)
}

/// The sizes to try: the one that must get through, and smaller ones that tell how far it goes. None: the agent's own choice.
fn mtus(what: &Probe) -> Vec<u32> {
    let Some(wanted) = what.mtu else { return Vec::new() };
    let mut mtus: Vec<u32> = [1280, 1500].into_iter().filter(|m| *m < wanted).collect();
    mtus.push(wanted);
    mtus
}

fn judge(what: &Probe, peer: &str, answer: &Answer, send: &Answer) -> Probed {
    let sent = match send {
        Ok(sent) => sent,
        Err(e) => return Probed { problem: Some(format!("cannot be sent: {}", e.text())), ..Probed::default() },
    };
    let ends = [Some(sent.interface_mtu), answer.as_ref().ok().map(|a| a.interface_mtu)];
    let smaller = ends.into_iter().flatten().filter(|m| *m > 0).min().unwrap_or_default();
    let wanted_mtu = what.mtu.unwrap_or(smaller);
    let problem = match (sent.answers, answer) {
        (0, Err(e)) => Some(format!("{peer} cannot answer: {}", e.text())),
        (0, Ok(_)) => Some(
            "no answer came; look at the VLANs that the switches carry between the two, at the type of their tags, and at the cables"
                .to_owned(),
        ),
        _ if sent.largest_mtu < wanted_mtu => Some(format!(
            "frames of MTU {wanted_mtu} do not get through, only up to {}; raise the MTU of what is between the two, or lower this one",
            sent.largest_mtu
        )),
        _ => None,
    };
    Probed { answers: sent.answers, largest_mtu: sent.largest_mtu, wanted_mtu, rtt_us: sent.rtt_us, problem }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tonic::Status;

    use super::*;

    #[test]
    fn what_must_get_through_is_judged_by_answers_and_mtu() {
        let end = |answers, largest_mtu, interface_mtu| -> Answer {
            Ok(v1::ProbeNetworkResponse { answers, largest_mtu, interface_mtu, ..v1::ProbeNetworkResponse::default() })
        };
        let broken = || -> Answer { Err(AgentError::from_status("pve2", &Status::not_found("no such interface"))) };
        type Row = (&'static str, Option<u32>, Answer, Answer, Option<&'static str>);
        let rows: &[Row] = &[
            ("all gets through", None, end(3, 0, 1500), end(3, 1500, 1500), None),
            ("the smaller end counts", None, end(3, 0, 1500), end(3, 1500, 9000), None),
            ("a switch in between", None, end(3, 0, 9000), end(2, 1500, 9000), Some("MTU 9000 do not get through, only up to 1500")),
            ("as asked for", Some(1500), end(3, 0, 9000), end(2, 1500, 9000), None),
            ("more than the interface", Some(9000), end(3, 0, 1500), end(2, 1500, 1500), Some("MTU 9000 do not get through")),
            ("nothing", None, end(0, 0, 1500), end(0, 0, 1500), Some("no answer came; look at the VLANs")),
            ("the peer lacks it", None, broken(), end(0, 0, 1500), Some("pve2 cannot answer: no such interface")),
            ("it lacks it itself", None, end(0, 0, 1500), broken(), Some("cannot be sent: no such interface")),
        ];
        for (name, mtu, answer, send, want) in rows {
            let what = Probe { interface: "e.7".into(), at_peer: "e.7".into(), vlan: 0, mtu: *mtu };
            let problem = judge(&what, "pve2", answer, send).problem;
            match want {
                None => assert_eq!(problem, None, "{name}"),
                Some(want) => assert!(problem.clone().unwrap_or_default().contains(want), "{name}: {problem:?}"),
            }
        }
    }

    #[test]
    fn sizes_end_with_the_one_that_must_get_through() {
        let of = |mtu| mtus(&Probe { interface: String::new(), at_peer: String::new(), vlan: 0, mtu });
        assert_eq!((of(None), of(Some(1400)), of(Some(9000))), (vec![], vec![1280, 1400], vec![1280, 1500, 9000]));
    }
}
