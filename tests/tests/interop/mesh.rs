//! Two machines become members of a mesh: each a network of its own, an agent, an Envoy (the oldest and the newest),
//! configured by `svidctl envoy bootstrap` and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use svid_tests::envoy::{Envoy, Version};
use svid_tests::{Server, interop, root, until};

use crate::machines::{Answer, Client, Machine, Site, ask};

const WEB: &str = "10.83.0.2";
const SHOP: &str = "10.83.0.3";

/// The old Envoy before `web`, the new one before `shop`; each calls the other.
struct Mesh {
    site: Site,
    web: Machine,
    shop: Machine,
    web_envoy: Envoy,
    shop_envoy: Envoy,
}

async fn mesh(svid_ttl: u32) -> Mesh {
    let site = Site::start(svid_ttl).await;
    let web = Machine::join(&site, "web", WEB).await;
    let shop = Machine::join(&site, "shop", SHOP).await;
    web.serve("127.0.0.1:8080");
    shop.serve("127.0.0.1:8080");
    let web_flags = format!(
        "--listen 8443 --to 127.0.0.1:8080 --mode strict --port 9090=permissive --port 9091=disable \
         --allow spiffe://example.org/shop --upstream shop={SHOP}:8443,spiffe://example.org/shop"
    );
    let shop_flags = format!(
        "--listen 8443 --to 127.0.0.1:8080 --allow spiffe://example.org/web \
         --upstream web={WEB}:8443,spiffe://example.org/web \
         --upstream permissive={WEB}:9090,spiffe://example.org/web \
         --upstream wrong={WEB}:8443,spiffe://example.org/somebody-else \
         --upstream db={WEB}:5432,spiffe://example.org/db,listen=15432,protocol=tcp"
    );
    let web_envoy = web.envoy(&site, Version::Old, "web", &web_flags).await;
    let shop_envoy = shop.envoy(&site, Version::New, "shop", &shop_flags).await;
    let mesh = Mesh { site, web, shop, web_envoy, shop_envoy };
    // Envoy opens its ports one after the other, each when its certificate is there.
    for machine in [&mesh.web, &mesh.shop] {
        until("mTLS", || async { machine.ask("127.0.0.1:15001").await.is_some_and(|it| it.status == 200) })
            .await;
    }
    mesh
}

fn allowed() -> bool {
    interop("machines with Envoys") && root("machines in network namespaces")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_call_and_who_answers() {
    if !allowed() {
        return;
    }
    let mut mesh = mesh(3600).await;
    let to_web = format!("{WEB}:8443");
    let told = |answer: Option<Answer>| answer.map(|it| (it.status, it.caller_id().map(str::to_owned)));
    let caller = |name: &str| Some((200, Some(format!("spiffe://example.org/{name}"))));

    // What the client claims to be in a header is gone; what it has proved stands there.
    assert_eq!(told(mesh.shop.ask("127.0.0.1:15001").await), caller("shop"));
    assert_eq!(told(mesh.web.ask("127.0.0.1:15001").await), caller("web"));

    // Plaintext: refused, served without a name, served without a name.
    assert_eq!(mesh.shop.ask(&to_web).await, None, "strict");
    let nobody = Some((200, None));
    assert_eq!(told(mesh.shop.ask(&format!("{WEB}:9090")).await), nobody, "permissive");
    assert_eq!(told(mesh.shop.ask(&format!("{WEB}:9091")).await), nobody, "disable");
    // mTLS on the permissive port.
    assert_eq!(told(mesh.shop.ask("127.0.0.1:15002").await), caller("shop"));

    // The peer is not who it must be: nothing is sent to it.
    let wrong = mesh.shop.ask("127.0.0.1:15003").await.expect("an answer of Envoy's own");
    assert_eq!((wrong.status, wrong.caller.as_str()), (503, ""));
    let line =
        mesh.shop_envoy.process().wait_for("\"expected_peer\":\"spiffe://example.org/somebody-else\"").await;
    assert!(line.contains("CERTIFICATE_VERIFY_FAILED"), "{line}");

    // A caller that nobody allowed, on the same machine as one that is.
    let stranger = "--listen 18443 --to 127.0.0.1:8080 --allow spiffe://example.org/web";
    let upstreams = format!(
        "--upstream web={WEB}:8443,spiffe://example.org/web,listen=16001 \
         --upstream permissive={WEB}:9090,spiffe://example.org/web,listen=16002"
    );
    let db = format!("--upstream db={WEB}:5432,spiffe://example.org/db,listen=16003,protocol=tcp");
    let flags = format!("{stranger} {upstreams} {db}");
    let _stranger = mesh.shop.envoy(&mesh.site, Version::New, "stranger", &flags).await;
    for at in ["127.0.0.1:16001", "127.0.0.1:16002"] {
        until("an answer", || async { mesh.shop.ask(at).await.is_some_and(|it| it.status != 503) }).await;
        let refused = mesh.shop.ask(at).await.expect("an answer");
        assert_eq!((refused.status, refused.caller.as_str()), (403, ""), "{at}");
    }
    let line = mesh.web_envoy.process().wait_for("\"caller\":\"spiffe://example.org/stranger\"").await;
    assert!(line.contains("rbac_access_denied"), "{line}");
    assert!(!line.contains("secret"), "a query is nobody's business: {line}");
    mesh.web_envoy.process().wait_for("\"caller\":\"unauthenticated (plaintext)\"").await;

    // Not HTTP as far as Envoy knows: the same rules on connections.
    let flags = "--protocol tcp --listen 5432 --to 127.0.0.1:8080 --allow spiffe://example.org/shop";
    let mut db = mesh.web.envoy(&mesh.site, Version::Old, "db", flags).await;
    until("TCP", || async { mesh.shop.ask("127.0.0.1:15432").await.is_some_and(|it| it.status == 200) })
        .await;
    assert_eq!(mesh.shop.ask("127.0.0.1:16003").await, None, "a stranger");
    let line = db.process().wait_for("\"caller\":\"spiffe://example.org/stranger\"").await;
    assert!(line.contains("rbac_access_denied"), "{line}");
    assert_eq!(mesh.shop.ask(&format!("{WEB}:5432")).await, None, "plaintext");
}

/// One client that never rests, on one connection or on a new one each time. It holds the network and nothing else, so
/// that a failing test shows the agents' logs.
fn ask_on_and_on(
    machine: &Machine,
    to: &'static str,
    keep: bool,
    stop: &Arc<AtomicBool>,
) -> tokio::task::JoinHandle<Vec<Answer>> {
    let (namespace, stop) = (Arc::clone(&machine.namespace), Arc::clone(stop));
    tokio::spawn(async move {
        let mut answers: Vec<Answer> = Vec::new();
        let mut kept = None;
        while !stop.load(Ordering::Relaxed) {
            let answer = match keep {
                false => ask(&namespace, to).await,
                true => {
                    if kept.is_none() {
                        let stream = namespace.connect(to.parse().expect("an address")).await;
                        kept = Some(Client::over(stream.expect("the local port")));
                    }
                    kept.as_mut().expect("just made").ask().await
                }
            };
            let broken = Answer { status: 0, caller: "the connection broke".into(), last: true };
            let answer = answer.unwrap_or(broken);
            if answer.last {
                kept = None;
            }
            answers.push(answer);
            // Not as fast as possible: two cores also run everything else.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        answers
    })
}

async fn certificate(machine: &Machine) -> Option<String> {
    machine.ask("127.0.0.1:15001").await.and_then(|answer| answer.certificate().map(str::to_owned))
}

/// Waits until both machines show other certificates than these, and returns those.
async fn others(mesh: &Mesh, before: &[Option<String>; 2]) -> [Option<String>; 2] {
    for (machine, before) in [&mesh.web, &mesh.shop].into_iter().zip(before) {
        until("another certificate", || async {
            let now = certificate(machine).await;
            now.is_some() && now != *before
        })
        .await;
    }
    [certificate(&mesh.web).await, certificate(&mesh.shop).await]
}

async fn authority(server: &Server, verb: &str, id: Option<&str>) -> String {
    let args = ["localauthority", "x509", verb]
        .into_iter()
        .chain(id.into_iter().flat_map(|id| ["-authorityID", id]));
    let said = server.cli(&args.collect::<Vec<_>>()).await.ok();
    let id = said.lines().find_map(|line| line.trim().strip_prefix("Authority ID: "));
    id.expect("an authority").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_through_leaf_and_ca_rotation() {
    if !allowed() {
        return;
    }
    let mesh = mesh(20).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients = [
        ask_on_and_on(&mesh.shop, "127.0.0.1:15001", true, &stop),
        ask_on_and_on(&mesh.shop, "127.0.0.1:15001", false, &stop),
        ask_on_and_on(&mesh.shop, "127.0.0.1:15002", true, &stop),
        ask_on_and_on(&mesh.web, "127.0.0.1:15001", true, &stop),
        ask_on_and_on(&mesh.web, "127.0.0.1:15001", false, &stop),
    ];
    let plaintext = ask_on_and_on(&mesh.shop, "10.83.0.2:9090", true, &stop);

    let mut shown = [certificate(&mesh.web).await, certificate(&mesh.shop).await];
    shown = others(&mesh, &shown).await;
    let server = &mesh.site.server;
    let old = server.cli(&["localauthority", "x509", "show"]).await.ok();
    let old =
        old.lines().find_map(|line| line.trim().strip_prefix("Authority ID: ")).expect("active").to_owned();
    let next = authority(server, "prepare", None).await;
    // Prepared is in every bundle a moment later; leaves of the old authority rotate once more meanwhile.
    others(&mesh, &shown).await;
    authority(server, "activate", Some(&next)).await;
    authority(server, "taint", Some(&old)).await;
    // Activation waited for the new authority to spread, and leaves of the old one rotated meanwhile. What comes after
    // the next one was certainly asked for after the taint.
    shown = [certificate(&mesh.web).await, certificate(&mesh.shop).await];
    shown = others(&mesh, &shown).await;
    shown = others(&mesh, &shown).await;
    authority(server, "revoke", Some(&old)).await;
    others(&mesh, &shown).await;

    stop.store(true, Ordering::Relaxed);
    let mut seen = std::collections::BTreeSet::new();
    for client in clients {
        let answers = client.await.expect("the client");
        let failed: Vec<_> =
            answers.iter().filter(|it| it.status != 200 || it.caller_id().is_none()).collect();
        assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), answers.len(), failed.first());
        assert!(answers.len() > 100, "only {} requests", answers.len());
        seen.extend(answers.iter().filter_map(|it| it.certificate().map(str::to_owned)));
    }
    assert!(seen.len() >= 8, "four certificates of each machine were seen: {seen:?}");
    let answers = plaintext.await.expect("the client");
    let failed: Vec<_> = answers.iter().filter(|it| it.status != 200 || !it.caller.is_empty()).collect();
    assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), answers.len(), failed.first());
    drop((mesh.web_envoy, mesh.shop_envoy));
}
