//! Texts at random, near what is right: the API server and the controller must think the same of each.

use futures_util::{StreamExt, stream};
use proptest::{
    strategy::{Strategy, ValueTree},
    string::string_regex,
    test_runner::TestRunner,
};
use pvelet_controller::kind::{Quantity, parse};
use serde_json::{Value, json};

use super::{DRY_RUN, collection, server};

/// How many of each kind.
const CASES: usize = 40;
const UUID: &str = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";

fn machine(more: Value) -> Value {
    let mut spec = json!({"source": {"template": 9000}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"kind": "PveMachine", "spec": spec})
}

fn disk(more: Value) -> Value {
    let mut disk = json!({"name": "a", "size": "1Gi", "storage": "fast"});
    disk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    machine(json!({"disks": [disk]}))
}

fn host(field: &str, text: &str) -> Value {
    let mut spec = json!({"address": "pve1", "cluster": "lab", "node": "pve1"});
    spec[field] = json!(text);
    json!({"kind": "PveHost", "spec": spec})
}

fn interface(more: Value) -> Value {
    let mut interface = json!({"name": "a", "bridge": {"vlanAware": true}});
    interface.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"kind": "PveNetwork", "spec": {"hosts": {"names": ["pve1"]}, "interfaces": [interface]}})
}

/// What texts of a field look like, and an object with one of them.
type Field = (&'static str, fn(&str) -> Value);

const QUANTITY: &str = r"[0-9]{0,4}(\.[0-9]{0,3})?(Ki|Mi|Gi|Ti|Pi|k|M|G|m|)";
const ADDRESS: &str =
    r"(10|192|127|224|255|169|0|256|01)\.(0|255|1)\.(0|127|128|255)\.(0|1|127|128|129|255)/(0|1|8|9|16|23|24|25|30|31|32|33)";
const ADDRESS6: &str = r"(2001:db8::|fe80::|ff02::|::|::1|fd00:1|2001:DB8:0:0:0:0:0:)[0-9a-g]{0,2}/(0|1|64|127|128|129)";

const FIELDS: &[Field] = &[
    (r"[aB1._-]{0,6}", |t| machine(json!({"name": t}))),
    (r"[aB1.-]{0,5}", |t| machine(json!({"tenant": t}))),
    (r"[a1._/-]{0,7}", |t| machine(json!({"pool": t}))),
    (r"[aB1_+.-]{0,4}", |t| machine(json!({"tags": [t]}))),
    (r"[aB1_.-]{0,5}", |t| machine(json!({"storage": t, "cloneMode": "full"}))),
    (r"[aB1_./-]{0,4}|[a1]{14,16}|\.{1,2}", |t| machine(json!({"nics": [{"bridge": t}]}))),
    (r"([0-9a-fA-F]{2}:){5}[0-9a-g]{2}|bc(:[0+a][0-9a-f]){5}", |t| machine(json!({"nics": [{"bridge": "b", "mac": t}]}))),
    (r"[_aB1-]{0,4}|a{31,33}", |t| machine(json!({"cloudInit": {"user": t}}))),
    (r"[0-9]{1,3}(\.[0-9]{1,3}){2,3}|[0-9a-f:]{2,12}|::[0-9a-f]{1,4}", |t| machine(json!({"cloudInit": {"nameservers": [t]}}))),
    (ADDRESS, |t| machine(json!({"cloudInit": {"ipConfigs": [{"ipv4": t}]}}))),
    (ADDRESS6, |t| machine(json!({"cloudInit": {"ipConfigs": [{"ipv6": t}]}}))),
    (r"10\.[01]\.(0|1|255)\.[0-9]{1,3}", |t| machine(json!({"cloudInit": {"ipConfigs": [{"ipv4": "10.0.0.5/23", "gateway4": t}]}}))),
    (r"(2001:db8::|2001:db8:1::|fe80::)[0-9a-f]{1,4}|10\.0\.0\.1", |t| {
        machine(json!({"cloudInit": {"ipConfigs": [{"ipv6": "2001:db8::5/64", "gateway6": t}]}}))
    }),
    (r"[ \t]?(ssh-|ssh-rsa|ecdsa-x|sk-ssh-y|x) {0,2}(AAAA|AAA)[A-Za-z]{0,3}( a|\n)?", |t| machine(json!({"cloudInit": {"sshKeys": [t]}}))),
    (QUANTITY, |t| machine(json!({"memory": t}))),
    (QUANTITY, |t| machine(json!({"bootDisk": t}))),
    (QUANTITY, |t| disk(json!({"size": t}))),
    (QUANTITY, |t| host("reservedMemory", t)),
    (r"[aB1.-]{0,4}", |t| disk(json!({"name": t}))),
    (r"[a./]{0,7}|a\nb|[a-c]\u{7f}", |t| disk(json!({"image": {"file": t}}))),
    (r"(local|l|lo_c-a|1a|a-)[:;](import|iso)/[a-z./]{0,4}", |t| disk(json!({"image": {"volid": t}}))),
    (r"[0-9a-gA-F]{63,65}", |t| disk(json!({"image": {"file": "a", "sha256": t}}))),
    (r"[aB1_-]{0,4}|current|pending|a{39,41}", |t| disk(json!({"snapshot": {"volume": UUID, "name": t}}))),
    (r"[0-9a-fA-F]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-g]{12}|0{8}-0{4}-0{4}-0{4}-0{12}|[0-9a-f]{32,36}", |t| {
        disk(json!({"volume": t}))
    }),
    (r"[aB1_.-]{1,3}(:[0-9]{0,6})?|[aB]\.[1a](:7)?|[0-9]{1,3}(\.[0-9]{1,3}){3}(:[0-9]{1,2})?", |t| host("address", t)),
    (r"\[?(2001:db8::[0-9a-g]|::1)\]?(:[0-9]{0,5})?", |t| host("address", t)),
    (r"[aB1._-]{0,5}", |t| host("node", t)),
    (r"[0-9]{0,4}[hms]?([0-9]{1,3}[ms])?", |t| {
        let mut object = host("cluster", "lab");
        object["spec"]["kubernetesNode"] = json!({"failedAfter": t});
        object
    }),
    (r"[0-9]{0,3}[ms]([0-9]{1,3}[ms])?", |t| {
        let mut object = interface(json!({}));
        object["spec"]["confirmTimeout"] = json!(t);
        object
    }),
    (ADDRESS, |t| interface(json!({"addresses": [t]}))),
    (ADDRESS6, |t| interface(json!({"addresses": [t]}))),
    (r"[0-9]{1,4}(-[0-9]{0,5})?|409[0-9]-409[0-9]", |t| interface(json!({"bridge": {"vlanAware": true, "vids": [t]}}))),
    (r"[a \u{e4}]{0,3}['`\t\u{a0}\\]?", |t| interface(json!({"comment": t}))),
    (r"(tap|lo|veth|fwbr|Tap|a|1)[0-9._/-]{0,3}", |t| interface(json!({"name": t}))),
];

/// Texts of which the API server knows less, and why.
fn is_stricter(text: &str) -> bool {
    // A prefix length with a leading zero: nobody writes it. More bytes than CEL counts with: nobody has them.
    let too_many = Quantity::parse(text).is_some_and(|bytes| bytes.0 > 9_000_000_000_000_000_000);
    too_many || (text.contains("/0") && !text.ends_with("/0"))
}

#[tokio::test]
async fn the_api_server_and_the_controller_think_the_same_of_every_text() {
    let server = server().await;
    let mut runner = TestRunner::deterministic();
    let mut objects = Vec::new();
    for (pattern, object) in FIELDS {
        let texts = string_regex(pattern).unwrap();
        for _ in 0..CASES {
            let text = texts.new_tree(&mut runner).unwrap().current();
            let mut object = object(&text);
            object["apiVersion"] = json!("pvelet.dev/v1alpha1");
            object["metadata"] = json!({"name": "a"});
            objects.push((text, object));
        }
    }
    let asked = stream::iter(objects).map(|(text, object)| {
        let kube = &server.admin;
        async move {
            let path = format!("{}?{DRY_RUN}", collection(object["kind"].as_str().unwrap()));
            let refused = kube.create(&path, &object).await.err();
            let mistakes: Vec<_> = parse(&object.to_string()).1.into_iter().flat_map(|p| p.mistakes).collect();
            (text, refused, mistakes)
        }
    });
    let answers: Vec<_> = asked.buffer_unordered(8).collect().await;
    let mut taken = 0;
    let mut wrong = Vec::new();
    for (text, refused, mistakes) in answers {
        match (refused, mistakes.is_empty()) {
            (None, true) => taken += 1,
            (None, false) => wrong.push(format!("{text:?} is taken, but: {mistakes:?}")),
            (Some(e), true) if !is_stricter(&text) => wrong.push(format!("{text:?} is refused: {e}")),
            (Some(e), _) => {
                if e.code != 422 || e.message.contains("evaluating rule") {
                    wrong.push(format!("{text:?}: {e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(taken > FIELDS.len() * CASES / 10, "only {taken} were sound");
}
