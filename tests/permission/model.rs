//! Random programs of all that owners and peers can do; after each step, what can be read is what a model of a few
//! lines says.

use std::collections::HashMap;

use alex_p2p::crypto::KeyPair;
use alex_p2p::hypercore::StaticTree;
use alex_p2p::transfer::Policy;
use serde_json::json;

use crate::friend::{Friend, Server, noise};

const PEERS: usize = 3;
const BOOKS: [&str; 2] = ["a", "b"];
const IDS: u64 = 3;

/// A request, as the model sees it.
#[derive(Debug, Clone)]
struct Asked {
    book: &'static str,
    /// The server's id of the transfer.
    transfer: String,
    standing: Standing,
    /// The version that a person approved.
    approved: Option<usize>,
    /// It was asked on the connection that there is.
    is_now: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open,
    /// Over; it may be asked again.
    Failed,
    Completed,
    /// Over for good.
    Ended,
}

#[derive(Debug, Clone, Default)]
struct Peer {
    is_approved: bool,
    policy: Option<Policy>,
    asked: HashMap<String, Asked>,
}

/// All that the model knows.
struct Model {
    default: Policy,
    /// Every version of each book so far, and whether the last is published.
    versions: HashMap<&'static str, Vec<StaticTree>>,
    published: HashMap<&'static str, usize>,
    peers: Vec<Peer>,
}

impl Model {
    /// The rule: an approved peer reads the bytes that are published now, for which it has an open request on this
    /// connection, if its policy or a person allows exactly these.
    fn may_read(&self, peer: usize, book: &str, version: usize) -> bool {
        let peer = &self.peers[peer];
        let policy = peer.policy.unwrap_or(self.default);
        peer.is_approved
            && self.published.get(book) == Some(&version)
            && peer.asked.values().any(|asked| {
                let is_asked =
                    asked.book == book && asked.standing == Standing::Open && asked.is_now;
                let is_allowed = match policy {
                    Policy::AutoAccept => true,
                    Policy::ManualApprove => asked.approved == Some(version),
                    Policy::MetadataOnly => false,
                };
                is_asked && is_allowed
            })
    }

    /// What follows from a decision for the requests that are open.
    fn reconsider(&mut self) {
        for peer in &mut self.peers {
            let policy = peer.policy.unwrap_or(self.default);
            for asked in peer.asked.values_mut().filter(|asked| asked.standing == Standing::Open) {
                let published = self.published.get(asked.book);
                if !peer.is_approved || policy == Policy::MetadataOnly {
                    asked.standing = Standing::Ended;
                } else if published.is_none() {
                    asked.standing = Standing::Failed;
                } else if policy == Policy::ManualApprove && asked.approved != published.copied() {
                    asked.approved = None;
                }
                if asked.standing != Standing::Open {
                    asked.approved = None;
                }
            }
        }
    }

    fn end_all(&mut self, peer: usize) {
        for asked in self.peers[peer].asked.values_mut() {
            if asked.standing != Standing::Completed {
                asked.standing = Standing::Ended;
            }
            (asked.approved, asked.is_now) = (None, false);
        }
    }

    /// What a peer that asks is answered, and what follows.
    fn ask(&mut self, peer: usize, id: &str, book: &'static str) -> &'static str {
        let published = self.published.get(book).copied();
        let default = self.default;
        let peer = &mut self.peers[peer];
        let policy = peer.policy.unwrap_or(default);
        let Some(asked) = peer.asked.get_mut(id) else {
            if published.is_none() {
                return "unavailable";
            }
            let (transfer, standing) = (String::new(), Standing::Open);
            let asked = Asked { book, transfer, standing, approved: None, is_now: true };
            peer.asked.insert(id.to_owned(), asked);
            return self.ask_again(policy, published, id, book);
        };
        if asked.book != book || asked.standing == Standing::Ended {
            return "denied";
        }
        self.ask_again(policy, published, id, book)
    }

    fn ask_again(
        &mut self,
        policy: Policy,
        published: Option<usize>,
        id: &str,
        book: &'static str,
    ) -> &'static str {
        let asked = self
            .peers
            .iter_mut()
            .find_map(|peer| peer.asked.get_mut(id).filter(|asked| asked.book == book))
            .unwrap();
        asked.is_now = true;
        let answer = match (policy, published) {
            (Policy::MetadataOnly, _) => "denied",
            (_, None) => "unavailable",
            (Policy::AutoAccept, _) => "granted",
            (Policy::ManualApprove, version) if asked.approved == version => "granted",
            (Policy::ManualApprove, _) => "pending",
        };
        asked.standing = match answer {
            "denied" => Standing::Ended,
            "unavailable" => Standing::Failed,
            _ => Standing::Open,
        };
        if answer != "granted" {
            asked.approved = None;
        }
        answer
    }
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// The server, the peers, and the model of both.
struct World {
    server: Server,
    keys: Vec<KeyPair>,
    friends: Vec<Option<Friend>>,
    model: Model,
}

impl World {
    async fn new(default: Policy) -> Self {
        let server = Server::start(default).await;
        let keys: Vec<_> = (0..PEERS).map(|_| KeyPair::generate()).collect();
        let model = Model {
            default,
            versions: HashMap::new(),
            published: HashMap::new(),
            peers: vec![Peer::default(); PEERS],
        };
        let friends = (0..PEERS).map(|_| None).collect();
        let mut world = Self { server, keys, friends, model };
        for peer in 0..PEERS {
            world.add(peer).await;
        }
        for book in BOOKS {
            world.publish(book, false).await;
        }
        world
    }

    async fn add(&mut self, peer: usize) {
        let key = self.keys[peer].public_key();
        self.server.node.peers().approve(&key).await.unwrap();
        self.model.peers[peer].is_approved = true;
        if self.friends[peer].is_none() {
            self.friends[peer] = Some(self.server.connect(&self.keys[peer]).await);
        }
    }

    async fn publish(&mut self, book: &'static str, in_place: bool) {
        let versions = self.model.versions.entry(book).or_default();
        let version = versions.len();
        let name = if in_place { format!("{book}.epub") } else { format!("{book} {version}.epub") };
        let seed = BOOKS.iter().position(|b| *b == book).unwrap() as u64 * 1000 + version as u64;
        let bytes = noise(seed + 1, 70_000 + version);
        versions.push(self.server.publish(book, &name, &bytes).await);
        self.model.published.insert(book, version);
        self.model.reconsider();
    }

    async fn let_go(&mut self, peer: usize, is_blocked: bool) {
        let key = self.keys[peer].public_key();
        if is_blocked {
            self.server.node.peers().block(&key).await.unwrap();
        } else {
            self.server.node.peers().remove(&key).await.unwrap();
            self.model.peers[peer].policy = None;
        }
        self.model.peers[peer].is_approved = false;
        self.model.end_all(peer);
        if let Some(friend) = self.friends[peer].take() {
            friend.is_hung_up_on().await;
        }
    }

    async fn reconnect(&mut self, peer: usize) {
        if let Some(friend) = self.friends[peer].take() {
            friend.mux.close();
            let key = self.keys[peer].public_key();
            let node = &self.server.node;
            let mut events = node.connections().unwrap().subscribe();
            while node.connections().unwrap().get(&key).is_some() {
                events.next().await;
            }
        }
        for asked in self.model.peers[peer].asked.values_mut() {
            asked.is_now = false;
        }
        if self.model.peers[peer].is_approved {
            self.friends[peer] = Some(self.server.connect(&self.keys[peer]).await);
        }
    }

    async fn restart(&mut self) {
        self.server.restart(self.model.default).await;
        for peer in 0..PEERS {
            self.friends[peer] = None;
            self.reconnect(peer).await;
        }
    }

    /// Asks for a book, with an id that may be new, or was used before in whatever way.
    async fn ask(&mut self, peer: usize, id: &str, book: &'static str) {
        let Some(friend) = &self.friends[peer] else { return };
        let is_new = !self.model.peers[peer].asked.contains_key(id);
        // Prepared before it was asked again, its answer is that it is being prepared.
        let expected = self.model.ask(peer, id, book);
        friend.drain().await;
        friend.request(id, book).await;
        let answer = friend.until(id, expected).await;
        println!("   {answer}");
        if is_new && let Some(asked) = self.model.peers[peer].asked.get_mut(id) {
            asked.transfer = self.server.outgoing()[0].id.clone();
        }
    }

    /// One of the requests of a peer.
    fn pick(&self, dice: &mut Dice, peer: usize) -> Option<(String, Asked)> {
        let mut all: Vec<_> = self.model.peers[peer].asked.iter().collect();
        all.sort_by_key(|(id, _)| (*id).clone());
        let (id, asked) = all.get(dice.roll(all.len().max(1)))?;
        Some(((*id).clone(), (*asked).clone()))
    }

    fn policy(&self, peer: usize) -> Policy {
        self.model.peers[peer].policy.unwrap_or(self.model.default)
    }

    async fn approve(&mut self, dice: &mut Dice, peer: usize) {
        let Some((id, asked)) = self.pick(dice, peer) else { return };
        let outcome = self.server.transfer(&asked.transfer).approve().await;
        println!("   {id}: {outcome:?}");
        assert_eq!(outcome.is_ok(), asked.standing == Standing::Open, "{outcome:?} {asked:?}");
        let version = self.model.published.get(asked.book).copied();
        let waits = self.policy(peer) == Policy::ManualApprove && asked.approved != version;
        if asked.standing == Standing::Open && waits {
            self.model.peers[peer].asked.get_mut(&id).unwrap().approved = version;
        }
    }

    async fn deny(&mut self, dice: &mut Dice, peer: usize) {
        let Some((id, asked)) = self.pick(dice, peer) else { return };
        let outcome = self.server.transfer(&asked.transfer).deny(None).await;
        println!("   {id}: {outcome:?}");
        if asked.standing == Standing::Open {
            outcome.unwrap();
            let asked = self.model.peers[peer].asked.get_mut(&id).unwrap();
            (asked.standing, asked.approved) = (Standing::Ended, None);
        }
    }

    /// The peer says that it has the book, or wants it no more.
    async fn end(&mut self, dice: &mut Dice, peer: usize, is_done: bool) {
        let Some((id, asked)) = self.pick(dice, peer) else { return };
        let Some(friend) = &self.friends[peer] else { return };
        friend.send(if is_done { 3 } else { 2 }, json!({"id": id})).await;
        let version = self.model.published.get(asked.book).copied();
        let waits = self.policy(peer) == Policy::ManualApprove && asked.approved != version;
        if asked.standing != Standing::Open || (is_done && waits) {
            friend.drain().await;
            return;
        }
        let over = self.server.transfer(&asked.transfer);
        crate::friend::soon(over.done()).await.unwrap();
        let asked = self.model.peers[peer].asked.get_mut(&id).unwrap();
        asked.standing = if is_done { Standing::Completed } else { Standing::Ended };
        asked.approved = None;
    }

    async fn step(&mut self, dice: &mut Dice) {
        let (peer, book) = (dice.roll(PEERS), BOOKS[dice.roll(BOOKS.len())]);
        let kind = dice.roll(24);
        println!("{kind} peer {peer} book {book}");
        match kind {
            0 => self.publish(book, false).await,
            1 => self.publish(book, true).await,
            2 => {
                self.server.unpublish(book).await;
                self.model.published.remove(book);
                self.model.reconsider();
            }
            3..=6 => {
                let policies = [
                    Policy::AutoAccept,
                    Policy::AutoAccept,
                    Policy::ManualApprove,
                    Policy::MetadataOnly,
                ];
                let policy = policies[dice.roll(4)];
                println!("   {policy:?}");
                if self.server.node.peers().get(&self.keys[peer].public_key()).is_some() {
                    self.server.set_policy(&self.keys[peer], policy).await;
                    self.model.peers[peer].policy = Some(policy);
                    self.model.reconsider();
                }
            }
            7 => self.let_go(peer, true).await,
            8 => self.let_go(peer, false).await,
            9..=11 => self.add(peer).await,
            12 => self.reconnect(peer).await,
            13 if dice.roll(3) == 0 => self.restart().await,
            13..=15 => self.approve(dice, peer).await,
            16 => self.deny(dice, peer).await,
            17 => self.end(dice, peer, true).await,
            18 => self.end(dice, peer, false).await,
            _ => {
                let id = format!("{peer} {}", dice.roll(IDS as usize * 2));
                self.ask(peer, &id, book).await;
            }
        }
    }

    /// Compares what can be read with what may be.
    async fn check(&mut self) {
        for (peer, friend) in self.friends.iter().enumerate() {
            let Some(friend) = friend else { continue };
            for (book, versions) in &self.model.versions {
                for (version, tree) in versions.iter().enumerate().rev().take(2) {
                    if self.model.may_read(peer, book, version) {
                        friend.reads(tree).await;
                    } else {
                        friend.cannot_read(tree).await;
                    }
                }
            }
        }
    }
}

async fn run(seed: u64, steps: usize) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let default = [Policy::ManualApprove, Policy::AutoAccept][dice.roll(2)];
    let mut world = World::new(default).await;
    for step in 0..steps {
        println!("-- {step}");
        world.step(&mut dice).await;
        world.check().await;
    }
    world.server.close().await;
}

/// `SEEDS=200 STEPS=100 cargo nextest run --test permission model` looks longer; `SEED=7` repeats one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_read_is_what_the_model_says() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let steps = number("STEPS", 40) as usize;
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..number("SEEDS", 6)).collect::<Vec<_>>(),
    };
    for seed in seeds {
        println!("seed {seed}");
        run(seed, steps).await;
    }
}
