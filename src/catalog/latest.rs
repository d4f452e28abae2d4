//! At most one piece of work for each peer: what is wanted last takes the place of what was wanted before.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::crypto::PublicKey;
use crate::sync::lock;

/// The work for all peers. Clones share it.
pub(super) struct Latest<T> {
    workers: Arc<Mutex<HashMap<PublicKey, Worker<T>>>>,
}

struct Worker<T> {
    wanted: watch::Sender<T>,
    stop: CancellationToken,
    /// Dropped by the worker when it has ended.
    ended: watch::Receiver<()>,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self { workers: Arc::default() }
    }
}

impl<T> Clone for Latest<T> {
    fn clone(&self) -> Self {
        Self { workers: Arc::clone(&self.workers) }
    }
}

impl<T: Clone + PartialEq + Send + Sync + 'static> Latest<T> {
    /// What is being done for a peer.
    pub(super) fn wanted(&self, peer: &PublicKey) -> Option<T> {
        lock(&self.workers).get(peer).map(|worker| worker.wanted.borrow().clone())
    }

    /// Has `work` done for a peer, unless it is being done already, and gives up what was being done. The
    /// work gets a token that says when it is to be given up: it then ends soon, in its own way. However
    /// often this is called, one task does the work of a peer, and nothing but the latest waits for it.
    pub(super) fn want<F, W>(&self, peer: PublicKey, wanted: T, until: &CancellationToken, work: F)
    where
        F: Fn(T, CancellationToken) -> W + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let mut workers = lock(&self.workers);
        if let Some(worker) = workers.get(&peer).filter(|worker| worker.is_there()) {
            worker.wanted.send_if_modified(|now| {
                let is_new = *now != wanted;
                *now = wanted;
                is_new
            });
            return;
        }
        let stop = until.child_token();
        let (sender, ended) = watch::channel(());
        let (wanted, mut news) = watch::channel(wanted);
        // Held, so that the worker is in before it can be out again.
        workers.insert(peer, Worker { wanted, stop: stop.clone(), ended });
        let all = Arc::clone(&self.workers);
        crate::tasks::spawn(async move {
            let _ended = sender;
            loop {
                let wanted = news.borrow_and_update().clone();
                let given_up = stop.child_token();
                let mut working = Box::pin(work(wanted, given_up.clone()));
                let is_done = tokio::select! {
                    () = &mut working => true,
                    // An error says that this worker was taken out, and it is stopped then.
                    _ = news.changed() => {
                        given_up.cancel();
                        working.await;
                        false
                    }
                };
                let mut all = lock(&all);
                if stop.is_cancelled() {
                    return;
                }
                if is_done && !news.has_changed().unwrap_or(false) {
                    all.remove(&peer);
                    return;
                }
            }
        });
    }

    /// Has the work for a peer given up, and returns when it has ended.
    pub(super) async fn stop(&self, peer: &PublicKey) {
        let worker = lock(&self.workers).remove(peer);
        if let Some(worker) = worker {
            worker.end().await;
        }
    }

    /// Has all work given up, and returns when it has ended.
    pub(super) async fn close(&self) {
        let workers: Vec<_> = lock(&self.workers).drain().map(|(_, worker)| worker).collect();
        workers.iter().for_each(|worker| worker.stop.cancel());
        for worker in workers {
            worker.end().await;
        }
    }
}

impl<T> Worker<T> {
    /// False after a panic.
    fn is_there(&self) -> bool {
        self.ended.has_changed().is_ok()
    }

    async fn end(mut self) {
        self.stop.cancel();
        // Fails when the worker is gone, also when it panicked.
        while self.ended.changed().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    const PEER: PublicKey = PublicKey::from_bytes([1; 32]);

    /// Work that says when it begins, and ends when it is given up.
    fn patient(
        said: &mpsc::UnboundedSender<(u32, &'static str)>,
    ) -> impl Fn(u32, CancellationToken) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
    + Send
    + use<> {
        let said = said.clone();
        move |number, given_up| {
            let said = said.clone();
            Box::pin(async move {
                said.send((number, "begins")).unwrap();
                given_up.cancelled().await;
                tokio::task::yield_now().await;
                said.send((number, "ends")).unwrap();
            })
        }
    }

    #[tokio::test]
    async fn the_latest_is_done_and_one_at_a_time() {
        let (said, mut heard) = mpsc::unbounded_channel();
        let (latest, cancel) = (Latest::default(), CancellationToken::new());
        latest.want(PEER, 1, &cancel, patient(&said));
        assert_eq!(heard.recv().await, Some((1, "begins")));
        for number in 2..1000 {
            latest.want(PEER, number, &cancel, patient(&said));
        }
        assert_eq!(latest.wanted(&PEER), Some(999));
        assert_eq!(heard.recv().await, Some((1, "ends")));
        assert_eq!(heard.recv().await, Some((999, "begins")));
        latest.want(PEER, 999, &cancel, patient(&said));
        latest.stop(&PEER).await;
        assert_eq!(heard.recv().await, Some((999, "ends")));
        assert!(heard.try_recv().is_err(), "nothing in between was begun");
        assert_eq!(latest.wanted(&PEER), None);
    }

    #[tokio::test]
    async fn work_that_is_done_is_forgotten_and_may_be_wanted_again() {
        let (latest, cancel) = (Latest::default(), CancellationToken::new());
        for _ in 0..2 {
            let (done, heard) = tokio::sync::oneshot::channel();
            let done = Arc::new(Mutex::new(Some(done)));
            latest.want(PEER, 1, &cancel, move |_, _| {
                let done = Arc::clone(&done);
                async move { lock(&done).take().into_iter().for_each(|done| done.send(()).unwrap()) }
            });
            heard.await.unwrap();
            while latest.wanted(&PEER).is_some() {
                tokio::task::yield_now().await;
            }
        }
    }
}
