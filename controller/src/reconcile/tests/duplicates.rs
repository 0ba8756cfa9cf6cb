//! Two objects that say they are the same host.

use super::Bench;
use crate::kind::{Host, PveHost};

fn because(reason: &'static str) -> impl Fn(&PveHost) -> bool {
    move |host| host.status.conditions.iter().any(|c| c.kind == "Ready" && c.reason == reason)
}

#[tokio::test]
async fn of_two_hosts_that_are_one_node_the_first_counts_and_the_other_says_so() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    running.until::<Host>("pve1", because("Ready")).await;
    let address = bench.agents[0].address;
    for name in ["again", "zone-pve1"] {
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata: {{name: {name}}}\n\
             spec: {{address: '{address}', cluster: lab, node: pve1}}\n"
        );
        bench.write(&format!("{name}.yaml"), &text);
    }
    // Whichever came first: the order of the names decides.
    running.until::<Host>("again", because("Ready")).await;
    for name in ["pve1", "zone-pve1"] {
        let host = running.until::<Host>(name, because("DuplicateHost")).await;
        let ready = host.status.conditions.iter().find(|c| c.kind == "Ready").unwrap();
        assert_eq!(ready.message, "PveHost again is node pve1 of PVE cluster lab too; remove one of them");
    }
}
