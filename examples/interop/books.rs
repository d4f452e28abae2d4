//! `interop books <dataDir>`: a server's catalog and transfers over plain TCP with a secret stream.
//!
//! Prints `{"event":"listening","port","key","feedKey"}` and every event of the server as
//! `{"event":"node","type",…}`, and takes commands, one JSON object a line:
//!
//! - `publish {id, path, title?}` → `published {length}`
//! - `policy {policy}` → `policy`
//! - `connect {port}` → `connected`; `closed {reason}` comes by itself
//! - `request {peer, bookId}` → `requested {id}`
//! - `act {id, action}` (`approve`, `deny`, `pause`, `resume`, `cancel`) → `acted`
//! - `info {id}` → `info {info}`; `list {peer, search?}` → `page {page}`
//! - `catalog {peer}` → `catalog {status}`

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use alex_p2p::catalog::{Book, BookEntry, Catalog, CatalogOptions, ListOptions};
use alex_p2p::crypto::{KeyPair, PublicKey};
use alex_p2p::events::Events;
use alex_p2p::hypercore::Storage;
use alex_p2p::hypercore::replicator::Replicator;
use alex_p2p::protomux::{MuxOptions, Protomux};
use alex_p2p::secret_stream::connect_xx;
use alex_p2p::store::{CoreStore, Database, StoreError};
use alex_p2p::transfer::message::{Hello, VERSION};
use alex_p2p::transfer::{
    BookRequest, BookSource, PeerRules, Policy, Transfer, TransferLimits, TransferOptions,
    Transfers,
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Everybody is approved, with one policy.
struct Rules(Mutex<Policy>);

impl PeerRules for Rules {
    fn is_approved(&self, _peer: &PublicKey) -> bool {
        true
    }
    fn policy(&self, _peer: &PublicKey) -> Policy {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Program {
    keys: KeyPair,
    rules: Arc<Rules>,
    replicator: Replicator,
    catalog: Catalog,
    transfers: Transfers,
}

/// Runs the program until stdin ends.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let folder = PathBuf::from(arguments.next().ok_or("usage: interop books <dataDir>")?);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(folder))
}

async fn serve(folder: PathBuf) -> Result<(), Failure> {
    std::fs::create_dir_all(&folder)?;
    let database = Database::open(&folder.join("p2p.db"))?;
    let events = Events::open(&database).await?;
    print_events(&events);
    let program = Arc::new(Program::open(folder, &database, &events).await?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    print(json!({"event": "listening", "port": listener.local_addr()?.port(),
        "key": program.keys.public_key().to_z32(),
        "feedKey": PublicKey::from_bytes(program.catalog.key()).to_z32()}));
    let accepting = Arc::clone(&program);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(Arc::clone(&accepting).speak(socket, false));
        }
    });
    let mut commands = commands();
    while let Some(line) = commands.recv().await {
        let command: Value = serde_json::from_str(&line)?;
        if let Err(error) = program.command(&command).await {
            print(json!({"event": "error", "command": command, "message": error.to_string()}));
        }
    }
    program.transfers.close().await;
    program.catalog.close().await;
    database.close();
    Ok(())
}

fn commands() -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (send, receive) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

/// Approves a server: here everybody is.
async fn approve(database: &Database, peer: PublicKey) -> Result<(), StoreError> {
    let sql =
        "INSERT OR IGNORE INTO peers (public_key, status, added_at) VALUES (?1, 'approved', 0)";
    database.write(move |t| Ok(t.execute(sql, [peer.to_z32()]).map(drop)?)).await
}

impl Program {
    async fn open(folder: PathBuf, database: &Database, events: &Events) -> Result<Self, Failure> {
        let seed_path = folder.join("seed");
        if !seed_path.exists() {
            std::fs::write(&seed_path, alex_p2p::crypto::random::<32>())?;
        }
        let seed: [u8; 32] = std::fs::read(&seed_path)?.as_slice().try_into()?;
        let keys = KeyPair::from_seed(&seed);
        let storage: Arc<dyn Storage> = Arc::new(CoreStore::new(database.clone()));
        let replicator = Replicator::new();
        let catalog = Catalog::open(CatalogOptions {
            database: database.clone(),
            storage: Arc::clone(&storage),
            replicator: replicator.clone(),
            key_pair: keys.clone(),
            events: events.clone(),
            share_feeds: false,
        })
        .await?;
        let rules = Arc::new(Rules(Mutex::new(Policy::AutoAccept)));
        let (feed_key, hearing, approving) = (catalog.key(), catalog.clone(), database.clone());
        let transfers = Transfers::open(TransferOptions {
            database: database.clone(),
            storage,
            replicator: replicator.clone(),
            library: Arc::new(catalog.clone()),
            peers: Arc::clone(&rules) as _,
            events: events.clone(),
            hello: Arc::new(move || Hello {
                version: VERSION,
                nickname: Some("interop".into()),
                feed_key: Some(feed_key),
                features: Vec::new(),
            }),
            on_hello: Arc::new(move |peer, hello| {
                let (catalog, database) = (hearing.clone(), approving.clone());
                tokio::spawn(async move {
                    let learned = async {
                        approve(&database, peer).await?;
                        match hello.feed_key {
                            Some(key) => catalog.set_feed(peer, key).await,
                            None => Ok(()),
                        }
                    };
                    if let Err(error) = learned.await {
                        eprintln!("a feed is not followed: {error}");
                    }
                });
            }),
            books_dir: folder.join("books"),
            data_dir: folder,
            limits: TransferLimits::default(),
        })
        .await?;
        catalog.on_change(transfers.readers());
        Ok(Self { keys, rules, replicator, catalog, transfers })
    }

    async fn speak(self: Arc<Self>, socket: TcpStream, initiator: bool) {
        let _ = socket.set_nodelay(true);
        let stream = match connect_xx(socket, initiator, &self.keys).await {
            Ok(stream) => stream,
            Err(error) => return print(json!({"event": "closed", "reason": error.to_string()})),
        };
        let mux = Protomux::new(stream, MuxOptions { paused: true });
        self.replicator.attach(&mux);
        self.transfers.attach(&mux);
        mux.start();
        print(json!({"event": "connected"}));
        print(json!({"event": "closed", "reason": mux.closed().await.to_string()}));
    }

    async fn command(self: &Arc<Self>, command: &Value) -> Result<(), Failure> {
        let text = |field: &str| command[field].as_str().unwrap_or_default().to_owned();
        match text("command").as_str() {
            "publish" => {
                let title = command["title"].as_str().unwrap_or("A book").to_owned();
                let format = Some("epub".to_owned());
                let entry = BookEntry { id: text("id"), title, format, ..BookEntry::default() };
                let source = Some(BookSource::Path(text("path").into()));
                self.catalog.publish(vec![Book { entry, source }]).await?;
                print(json!({"event": "published", "length": self.catalog.length()}));
            }
            "policy" => {
                let policy = text("policy").parse()?;
                *self.rules.0.lock().unwrap_or_else(PoisonError::into_inner) = policy;
                print(json!({"event": "policy"}));
            }
            "connect" => {
                let port = u16::try_from(command["port"].as_u64().unwrap_or_default())?;
                let socket = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::spawn(Arc::clone(self).speak(socket, true));
            }
            "request" => {
                let (peer, book_id) = (text("peer"), text("bookId"));
                let request = BookRequest { peer, book_id, save_to: None };
                let transfer = self.transfers.request(request).await?;
                print(json!({"event": "requested", "id": transfer.id()}));
            }
            "act" => {
                let transfer = self.transfer(&text("id"))?;
                match text("action").as_str() {
                    "approve" => transfer.approve().await?,
                    "deny" => transfer.deny(Some("no".into())).await?,
                    "pause" => transfer.pause().await?,
                    "resume" => transfer.resume().await?,
                    _ => transfer.cancel().await?,
                }
                print(json!({"event": "acted"}));
            }
            "info" => {
                let info = self.transfer(&text("id"))?.info()?;
                print(json!({"event": "info", "info": info}));
            }
            "list" => {
                let peer = PublicKey::from_z32(&text("peer")).ok_or("no such key")?;
                let search = command["search"].as_str().map(str::to_owned);
                let options = ListOptions { search, ..ListOptions::default() };
                let page = self.catalog.of(peer).list(&options)?;
                print(json!({"event": "page", "page": page}));
            }
            "catalog" => {
                let peer = PublicKey::from_z32(&text("peer")).ok_or("no such key")?;
                let status = self.catalog.of(peer).status()?;
                print(json!({"event": "catalog", "status": status}));
            }
            other => return Err(format!("unknown command {other}").into()),
        }
        Ok(())
    }

    fn transfer(&self, id: &str) -> Result<Transfer, Failure> {
        Ok(self.transfers.get(id)?.ok_or("no such transfer")?)
    }
}

fn print_events(events: &Events) {
    let mut all = events.subscribe(None);
    tokio::spawn(async move {
        while let Some(event) = all.next().await {
            let mut line = serde_json::to_value(&event).unwrap_or_default();
            line["event"] = "node".into();
            print(line);
        }
    });
}

fn print(line: Value) {
    println!("{line}");
}
