//! Changing this node's own catalog, and having whoever reads its books asked whether they still may.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Book, Catalog, CatalogError, Changes, Inner, PublishOptions};
use crate::error::Result;
use crate::transfer::BookReaders;

/// How often readers are asked again while the disk fails.
const RECONSIDER: Duration = Duration::from_secs(2);

impl Catalog {
    /// Adds books to the catalog, or describes them anew. Only what changed is appended, all in one
    /// batch, and it is on disk when this returns. Of two books with the same id the later counts.
    ///
    /// Fails with `ERR_INVALID_ARGUMENT` when a book breaks a limit; then nothing was published.
    /// Cancelled, it publishes all or nothing. Books whose file is not there are published, too, and named
    /// in the result.
    pub async fn publish(&self, books: Vec<Book>) -> Result<Changes> {
        self.publish_with(books, PublishOptions::default()).await
    }

    /// As [`Catalog::publish`], with options.
    pub async fn publish_with(&self, books: Vec<Book>, options: PublishOptions) -> Result<Changes> {
        let ids = books.iter().map(|book| book.entry.id.clone()).collect();
        let work = |inner: Arc<Inner>| async move { inner.own.publish(books, options).await };
        self.change(Some(ids), None, work).await
    }

    /// Removes books from the catalog. Ids that are not there are ignored.
    ///
    /// Nobody reads them from the moment of the call on.
    pub async fn unpublish(&self, ids: Vec<String>) -> Result<Changes> {
        let withheld = self.inner.readers.get().map(|readers| Withheld::new(readers, &ids));
        let work = |inner: Arc<Inner>, ids| async move { inner.own.unpublish(ids).await };
        self.change(Some(ids.clone()), withheld, |inner| work(inner, ids)).await
    }

    /// Makes the catalog exactly these books: what is new or changed is added, what is missing is
    /// removed, what is the same is left alone.
    pub async fn sync(&self, books: Vec<Book>) -> Result<Changes> {
        self.sync_with(books, PublishOptions::default()).await
    }

    /// As [`Catalog::sync`], with options.
    pub async fn sync_with(&self, books: Vec<Book>, options: PublishOptions) -> Result<Changes> {
        let work = |inner: Arc<Inner>| async move { inner.own.sync(books, options).await };
        self.change(None, None, work).await
    }

    /// Changes the own catalog, and has whoever reads these books, or any, asked whether they still may. Once
    /// begun, it comes to its end also when the caller goes.
    async fn change<F>(
        &self,
        ids: Option<Vec<String>>,
        withheld: Option<Withheld>,
        work: impl FnOnce(Arc<Inner>) -> F,
    ) -> Result<Changes>
    where
        F: Future<Output = Result<Changes, CatalogError>> + Send + 'static,
    {
        let (inner, work) = (Arc::clone(&self.inner), work(Arc::clone(&self.inner)));
        let changing = crate::tasks::spawn(async move {
            let changes = work.await;
            // Also after a failure, of which some may have been written.
            inner.changes.fetch_add(1, Ordering::AcqRel);
            if let Some(readers) = inner.readers.get()
                && !readers.reconsider(ids.clone()).await
            {
                crate::tasks::spawn(reconsider_later(inner, ids, withheld));
            }
            changes
        });
        Ok(changing.await.map_err(|_| CatalogError::Closed)??)
    }

    /// Says who reads the own books: they hear when a book is withdrawn or replaced.
    pub fn on_change(&self, readers: Arc<dyn BookReaders>) {
        // Once, when the node opens.
        let _ = self.inner.readers.set(readers);
    }
}

/// Books that nobody may read until this is dropped.
struct Withheld {
    readers: Arc<dyn BookReaders>,
    ids: Vec<String>,
}

impl Withheld {
    fn new(readers: &Arc<dyn BookReaders>, ids: &[String]) -> Self {
        readers.withhold(ids);
        Self { readers: Arc::clone(readers), ids: ids.to_vec() }
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        self.readers.restore(&self.ids);
    }
}

/// Has readers asked again whom the disk kept from being asked. What was withheld stays so meanwhile.
async fn reconsider_later(
    inner: Arc<Inner>,
    ids: Option<Vec<String>>,
    _withheld: Option<Withheld>,
) {
    while inner.cancel.run_until_cancelled(tokio::time::sleep(RECONSIDER)).await.is_some() {
        let Some(readers) = inner.readers.get() else { return };
        if readers.reconsider(ids.clone()).await {
            return;
        }
    }
}
