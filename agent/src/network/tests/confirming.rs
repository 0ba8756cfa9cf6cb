//! What a change waits for.

use pvelet_proto::reason as r;

use super::*;

#[tokio::test(start_paused = true)]
async fn only_a_connection_that_is_younger_than_the_change_confirms_it() {
    let rig = rig();
    let before = rig.opened().await;
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&op.name, WAITING).await;
    assert_eq!(rig.confirm(&op.name, before).await.unwrap_err(), Error::StaleConnection);
    assert_eq!(rig.phase(), "waiting");
    let opened = rig.opened().await;
    rig.confirm(&op.name, opened).await.unwrap();
    succeeded(&rig.end(&op.name).await);
}

#[tokio::test(start_paused = true)]
async fn without_a_confirmation_the_host_is_as_it_was_when_the_time_is_over() {
    let rig = rig();
    let before = rig.shape();
    let mut request = apply("a", "n", classic());
    request.confirm_timeout = Some(prost_types::Duration { seconds: 20, nanos: 0 });
    let op = rig.apply(request).await.unwrap();
    rig.until(&op.name, WAITING).await;
    let since = rig.boot().time;
    let op = rig.end(&op.name).await;
    assert_eq!(reason(&op), r::NETWORK_ROLLED_BACK);
    assert!(op.error.as_ref().unwrap().message.contains("not confirmed in time"), "{op:?}");
    let waited = rig.boot().time - since;
    assert!((19..25).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!((rig.shape(), rig.host.own_file(), rig.phase().as_str()), (before, None, "rolled_back"));
    rig.quiet();
    let opened = rig.opened().await;
    let error = rig.confirm(&op.name, opened).await.unwrap_err();
    assert_eq!(error.reason(), r::NETWORK_NOT_WAITING);
    // Nothing is in the way of the next one.
    rig.make("b", "n", classic()).await;
}

#[tokio::test(start_paused = true)]
async fn somebody_may_undo_it_at_once_and_again() {
    let rig = rig();
    let before = rig.shape();
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&op.name, WAITING).await;
    for _ in 0..2 {
        let answer = rig.roll_back(&op.name).await.unwrap();
        let change = answer.change.unwrap();
        assert_eq!((change.state(), change.undone_by.as_str()), (v1::NetworkChangeState::RolledBack, "agent"));
        assert!(change.detail.contains("operator/ann"), "{change:?}");
        assert_eq!(reason(&answer.operation.unwrap()), r::NETWORK_ROLLED_BACK);
    }
    assert_eq!(rig.shape(), before);
    rig.quiet();
    let other = "operations/7f7f7f7f-7f7f-4f7f-8f7f-7f7f7f7f7f7f";
    assert_eq!(rig.roll_back(other).await.unwrap_err().reason(), r::NETWORK_NOT_WAITING);
    assert_eq!(rig.roll_back("x").await.unwrap_err().reason(), r::INVALID_FIELD);
}

#[tokio::test(start_paused = true)]
async fn steps_that_hang_are_undone_on_request() {
    let rig = rig();
    let before = rig.shape();
    rig.host.hang("vmbr100", true);
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&op.name, "bringing interfaces up and down").await;
    let error = rig.confirm(&op.name, rig.boot().time).await.unwrap_err();
    assert_eq!(error.reason(), r::NETWORK_NOT_WAITING);
    let began = rig.boot().time;
    rig.roll_back(&op.name).await.unwrap();
    assert!(rig.boot().time - began < Duration::from_secs(60), "it did not wait for the steps");
    assert_eq!(rig.shape(), before);
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_change_is_not_undone() {
    let rig = rig();
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    let op = rig.finish(op).await;
    assert_eq!(rig.roll_back(&op.name).await.unwrap_err().reason(), r::NETWORK_NOT_WAITING);
}

#[tokio::test(start_paused = true)]
async fn it_is_cancelled_before_anything_is_touched_and_not_after() {
    let rig = rig();
    let lock = crate::host::net::Network::lock(&*rig.host.beside(), Duration::ZERO).await.unwrap();
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&op.name, "waiting for the network's lock").await;
    let cancel = |name: &str| v1::CancelOperationRequest { meta: meta("x"), name: name.into() };
    rig.ops.cancel(&caller(), &cancel(&op.name)).unwrap();
    drop(lock);
    let op = rig.end(&op.name).await;
    assert_eq!((op.state(), rig.phase().as_str()), (v1::OperationState::Cancelled, ""));

    let op = rig.apply(apply("b", "n", classic())).await.unwrap();
    rig.until(&op.name, WAITING).await;
    let error = rig.ops.cancel(&caller(), &cancel(&op.name)).unwrap_err();
    assert!(error.to_string().contains("RollbackNetwork"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_change_does_not_hold_up_the_agents_end() {
    let rig = rig();
    let op = rig.apply(apply("a", "n", classic())).await.unwrap();
    rig.until(&op.name, WAITING).await;
    let began = rig.boot().time;
    assert_eq!(rig.ops.drain(Duration::from_secs(30)).await, 1);
    assert!(rig.boot().time - began < Duration::from_secs(1));
}
