//! Places that others could have prepared, and places that are taken.

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::Path;

use svid_tests::{Agent, AgentOptions, Server, ServerOptions, root};

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

async fn agent_refuses(server: &Server, make: impl FnOnce(&Path), says: &str) {
    let agent = Agent::prepare(server, AgentOptions::default()).await;
    make(agent.socket().parent().expect("a directory"));
    let token = server.token().await;
    let (code, log) = agent.launch(&["-joinToken", &token]).end().await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains(says), "{says:?} is not in:\n{log}");
    assert!(!agent.socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_directory_that_others_made_or_can_write() {
    let server = Server::start().await;
    let writable = |dir: &Path| {
        std::fs::create_dir(dir).expect("mkdir");
        chmod(dir, 0o777);
    };
    agent_refuses(&server, writable, "can be written by other users").await;
    let linked = |dir: &Path| {
        let real = dir.with_file_name("elsewhere");
        std::fs::create_dir(&real).expect("mkdir");
        symlink(real, dir).expect("symlink");
    };
    agent_refuses(&server, linked, "is a symlink").await;
    if root("a socket directory of another user") {
        let foreign = |dir: &Path| {
            std::fs::create_dir(dir).expect("mkdir");
            chown(dir, Some(1000), Some(1000)).expect("chown");
        };
        agent_refuses(&server, foreign, "belongs to uid 1000").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_socket_in_a_directory_of_another_user() {
    let server = Server::prepare(&ServerOptions::default());
    // The server's admin socket lies directly in its directory.
    chmod(server.path(), 0o777);
    let (code, log) = server.launch().end().await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("can be written by other users"), "{log}");
    chmod(server.path(), 0o700);
    if root("an admin socket in a directory of another user") {
        chown(server.path(), Some(1000), None).expect("chown");
        let (code, log) = server.launch().end().await;
        assert_eq!(code, 1, "{log}");
        assert!(log.contains("belongs to uid 1000"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn something_in_the_place_of_the_socket() {
    let server = Server::start().await;
    let file = |dir: &Path| {
        std::fs::create_dir(dir).expect("mkdir");
        chmod(dir, 0o755);
        std::fs::write(dir.join("api.sock"), "precious").expect("write");
    };
    let agent = Agent::prepare(&server, AgentOptions::default()).await;
    file(agent.socket().parent().expect("a directory"));
    let token = server.token().await;
    let (code, log) = agent.launch(&["-joinToken", &token]).end().await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("not a socket is in the way"), "{log}");
    assert_eq!(std::fs::read_to_string(agent.socket()).expect("still there"), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_one_data_dir() {
    let mut server = Server::start().await;
    let (code, log) = server.launch().end().await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("in use by another process"), "{log}");
    assert!(log.contains(&format!("pid {}", server.process().pid())), "{log}");
    server.cli(&["healthcheck"]).await.ok();
    // The place is free again once its holder was killed.
    server.kill().await;
    server.restart().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_one_data_dir() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    let token = server.token().await;
    let (code, log) = agent.launch(&["-joinToken", &token]).end().await;
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("in use by another process"), "{log}");
    agent.cli(&["healthcheck"]).await.ok();
}
