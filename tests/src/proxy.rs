//! A TCP proxy whose way can be changed: to another server, to nobody, and off in the middle of a message.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From who connected.
    There,
    /// Answers.
    Back,
}

/// A port of the loopback address that leads to another one.
pub struct Proxy {
    /// Where to connect.
    pub port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    /// Where new connections lead. Each change ends those that are open.
    way: watch::Sender<Option<u16>>,
    /// Cuts after so many more bytes in this direction.
    fuse: Mutex<Option<(Direction, usize)>>,
}

impl Proxy {
    /// Leads to a port of this machine.
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a free port");
        let own = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared { way: watch::Sender::new(Some(port)), fuse: Mutex::new(None) });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { port: own, shared, task }
    }

    /// Ends open connections; new ones lead to `port`.
    pub fn lead_to(&self, port: u16) {
        self.shared.way.send_replace(Some(port));
    }

    /// Ends open connections, and new ones at once.
    pub fn cut(&self) {
        self.shared.way.send_replace(None);
    }

    /// Ends all open connections once `bytes` more have passed in `direction`. New ones are as good as before.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        *self.shared.fuse() = Some((direction, bytes));
    }

    /// False until what [`Proxy::cut_after`] announced has happened.
    pub fn was_cut(&self) -> bool {
        self.shared.fuse().is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

impl Shared {
    fn fuse(&self) -> MutexGuard<'_, Option<(Direction, usize)>> {
        self.fuse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `size` bytes pass; fewer means that this was the cut.
    fn pass(&self, direction: Direction, size: usize) -> usize {
        let mut fuse = self.fuse();
        match &mut *fuse {
            Some((cut, left)) if *cut == direction => {
                if let Some(rest) = left.checked_sub(size) {
                    *left = rest;
                    return size;
                }
                let passing = *left;
                *fuse = None;
                passing
            }
            _ => size,
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let mut way = shared.way.subscribe();
        let to = *way.borrow_and_update();
        if let Some(port) = to {
            tokio::spawn(carry(client, port, shared.clone(), way));
        }
    }
}

async fn carry(client: TcpStream, port: u16, shared: Arc<Shared>, mut way: watch::Receiver<Option<u16>>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        _ = way.changed() => {}
        () = pump(from_client, to_server, &shared, Direction::There) => {}
        () = pump(from_server, to_client, &shared, Direction::Back) => {}
    }
}

/// Until either side ends, or the cut comes.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, direction: Direction) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(size @ 1..) = from.read(&mut buffer).await {
        let passing = shared.pass(direction, size);
        if to.write_all(&buffer[..passing]).await.is_err() {
            return;
        }
        if passing < size {
            shared.way.send_modify(|_| {});
            return;
        }
    }
}
