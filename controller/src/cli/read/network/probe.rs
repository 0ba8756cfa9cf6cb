//! Trying interfaces with real frames.

use pvelet_proto::v1;

use crate::{
    agents::{self, AgentClient},
    cli::{
        CliError, Exit, Session,
        args::ProbeNetwork,
        output,
        table::{Look, Rows},
        view::{HolderView, ProbeView, ReachedView},
    },
};

/// Addresses that an agent is asked for at once.
const AT_ONCE: usize = 256;

pub(in crate::cli) async fn probe(session: &Session, args: &ProbeNetwork) -> Result<Exit, CliError> {
    let from = match &args.from {
        Some(name) => session.agent(name)?,
        None => session.one_agent("probe (or --from)")?,
    };
    let view = match &args.to {
        Some(to) => {
            let to = session.agent(to)?;
            if to.name() == from.name() {
                return Err(CliError::Usage("--from and --to name the same host: use two".to_owned()));
            }
            let (interface, at_peer) = (args.interface.clone(), args.interface.clone());
            let what = agents::Probe { interface, at_peer, vlan: args.vlan.unwrap_or(0), mtu: args.mtu };
            let found = agents::probe(from, to, &what).await;
            let reached = ReachedView {
                answers: found.answers,
                largest_mtu: found.largest_mtu,
                wanted_mtu: found.wanted_mtu,
                rtt_us: found.rtt_us,
                problem: found.problem,
            };
            base(args, from.name(), Some(to.name()), Some(reached), None)
        }
        None => base(args, from.name(), None, None, Some(holders(from, args).await?)),
    };
    output::print(&session.io, session.format, &view, |v| probe_text(v, args, session.io.colour))?;
    let fine = view.reached.as_ref().is_none_or(|r| r.problem.is_none()) && view.holders.as_ref().is_none_or(Vec::is_empty);
    Ok(if fine { Exit::Ok } else { Exit::Failed })
}

fn base(args: &ProbeNetwork, from: &str, to: Option<&str>, reached: Option<ReachedView>, holders: Option<Vec<HolderView>>) -> ProbeView {
    ProbeView { from: from.to_owned(), to: to.map(str::to_owned), interface: args.interface.clone(), vlan: args.vlan, reached, holders }
}

async fn holders(agent: &AgentClient, args: &ProbeNetwork) -> Result<Vec<HolderView>, CliError> {
    use v1::probe_network_request::Probe;
    let addresses = args.addresses.as_ref().map(|a| a.0.as_slice()).unwrap_or_default();
    let mut all = Vec::new();
    for some in addresses.chunks(AT_ONCE) {
        let addresses = some.iter().map(ToString::to_string).collect();
        let request = v1::ProbeNetworkRequest {
            interface: args.interface.clone(),
            vlan: args.vlan.unwrap_or(0),
            probe: Some(Probe::Addresses(v1::ProbeAddresses { addresses })),
            timeout: None,
        };
        let found = agent.answer(agent.network().probe_network(request).await)?;
        all.extend(found.holders.into_iter().map(|h| HolderView { address: h.address, mac: h.mac }));
    }
    Ok(all)
}

fn probe_text(v: &ProbeView, args: &ProbeNetwork, colour: bool) -> String {
    let what = match v.vlan {
        Some(vlan) => format!("{} VLAN {vlan}", v.interface),
        None => v.interface.clone(),
    };
    if let (Some(to), Some(r)) = (&v.to, &v.reached) {
        let line = match &r.problem {
            Some(problem) => Look::Bad.paint(colour, &format!("{what} from {} to {to}: {problem}", v.from)),
            None => format!("{what} from {} to {to}: gets through up to MTU {}, in {} µs", v.from, r.largest_mtu, r.rtt_us),
        };
        return line + "\n";
    }
    let asked = args.addresses.as_ref().map_or(0, |a| a.0.len());
    let holders = v.holders.as_deref().unwrap_or_default();
    if holders.is_empty() {
        return format!("{what} on {}: nobody answers for any of {asked} addresses\n", v.from);
    }
    let mut rows = Rows::new(&["ADDRESS", "USED BY"]);
    holders.iter().for_each(|h| rows.add(Look::Bad, vec![h.address.clone(), h.mac.clone()]));
    rows.render(colour, "")
}
