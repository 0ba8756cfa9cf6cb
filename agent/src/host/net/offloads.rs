//! What network cards do with VLAN tags by themselves, read by ethtool's netlink.

use std::collections::BTreeMap;

use ethtool::{EthtoolAttr, EthtoolError, EthtoolFeatureAttr, EthtoolHandle};
use futures_util::TryStreamExt;
use tokio::runtime::Builder;

use super::{
    KernelLink,
    kernel::{blocking, failed},
};
use crate::error::Error;

/// The VLAN features that are on, of network cards and bonds. Links that cannot tell, or are gone, are left out. Errors: `NetworkFailed`.
pub async fn read(links: &[KernelLink]) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let names: Vec<String> = links.iter().filter(|l| ["ether", "bond"].contains(&l.kind.as_str())).map(|l| l.name.clone()).collect();
    // The kernel answers under its lock on the network, so this belongs on a thread that may block. A runtime of its own, since the crate's
    // connection is a task: it ends with the runtime.
    blocking(move || {
        let runtime = Builder::new_current_thread().enable_io().build().map_err(|e| failed("reading the offloads", e))?;
        runtime.block_on(async {
            let (connection, mut handle, _) = ethtool::new_connection().map_err(|e| failed("opening a netlink socket", e))?;
            tokio::spawn(connection);
            let mut all = BTreeMap::new();
            for name in names {
                match vlan_features(&mut handle, &name).await {
                    Ok(features) => drop(all.insert(name, features)),
                    Err(EthtoolError::NetlinkError(_)) => {}
                    Err(e) => return Err(failed(format!("reading the offloads of '{name}'"), e)),
                }
            }
            Ok(all)
        })
    })
    .await
}

async fn vlan_features(handle: &mut EthtoolHandle, name: &str) -> Result<Vec<String>, EthtoolError> {
    let answers: Vec<_> = handle.feature().get(Some(name)).execute().await?.try_collect().await?;
    let mut features = Vec::new();
    for attribute in answers.into_iter().flat_map(|answer| answer.payload.nlas) {
        if let EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) = attribute {
            features.extend(bits.into_iter().filter(|bit| bit.value && bit.name.contains("vlan")).map(|bit| bit.name));
        }
    }
    features.sort();
    Ok(features)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rtnetlink::{
        LinkVeth,
        packet_core::{NLM_F_CREATE, NLM_F_EXCL},
        packet_route::RouteNetlinkMessage,
    };

    use super::{
        super::kernel::{open, tests::in_namespace},
        *,
    };

    #[test]
    fn network_cards_tell_what_is_on_and_all_others_are_left_out() {
        in_namespace(async || {
            let pair = LinkVeth::new("eno1", "eno2").build();
            open().unwrap().change(RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL).unwrap();
            let link = |name: &str, kind: &str| KernelLink { name: name.into(), kind: kind.into(), ..KernelLink::default() };
            let found = read(&[link("eno1", "ether"), link("eno2", "veth"), link("gone", "ether")]).await.unwrap();
            assert_eq!(found.keys().collect::<Vec<_>>(), ["eno1"]);
            assert!(found["eno1"].contains(&"tx-vlan-hw-insert".into()), "{found:?}");
            assert!(found["eno1"].iter().all(|f| f.contains("vlan")), "{found:?}");
        });
    }
}
