"""How is ``/v1/files`` answered? Uploads go to the disk as they come, downloads come from there as they are read."""

import asyncio
from typing import Final

import msgspec

from gateway.api.context import Context
from gateway.api.exchange import ClientGone, Exchange
from gateway.batches.files import FileStore
from gateway.batches.folder import reason
from gateway.batches.service import Batches, disk_refused
from gateway.batches.upload import UploadForm
from gateway.wire import errors
from gateway.wire.files import MAX_LISTED, FileDeleted, FileObject, ListQuery, page

_BLOCK: Final = 1 << 18

_encode = msgspec.json.Encoder().encode


async def upload_file(context: Context, exchange: Exchange) -> None:
    """``POST /v1/files``: keep a file that is sent as a form. Its size is bounded by ``--max-file`` alone."""
    batches = context.batches_or_503()
    store = await batches.files()
    form = UploadForm(exchange.content_type)
    try:
        await exchange.reply(200, _encode(await _receive(batches, store, exchange, form)))
    except OSError as error:
        raise disk_refused(error) from error


async def list_files(context: Context, exchange: Exchange) -> None:
    """``GET /v1/files``: the files, or those of one purpose, the newest first unless ``order`` is asc."""
    query = ListQuery(exchange.query, default=MAX_LISTED, most=MAX_LISTED)
    store = await context.batches_or_503().files()
    await exchange.reply(200, _encode(page(store.list(query, exchange.key.id), query.limit)))


async def show_file(context: Context, exchange: Exchange) -> None:
    """``GET /v1/files/ID``: what is known of a file."""
    store = await context.batches_or_503().files()
    await exchange.reply(200, _encode(_file(store, exchange)))


async def delete_file(context: Context, exchange: Exchange) -> None:
    """``DELETE /v1/files/ID``: remove a file. A batch that has it for its input goes on."""
    batches = context.batches_or_503()
    store = await batches.files()
    file = _file(store, exchange)
    try:
        if not await batches.threads.run(store.delete, file.id):
            raise errors.unknown_id("File", file.id, "file_id")
    except OSError as error:
        raise disk_refused(error) from error
    await exchange.reply(200, _encode(FileDeleted(file.id)))


async def download_file(context: Context, exchange: Exchange) -> None:
    """``GET /v1/files/ID/content``: what is in a file."""
    batches = context.batches_or_503()
    store = await batches.files()
    file = _file(store, exchange)
    try:
        content = await batches.threads.run(open, store.path(file.id), "rb", buffering=0)
    except FileNotFoundError:
        raise errors.unknown_id("File", file.id, "file_id") from None
    gone = asyncio.create_task(exchange.gone())
    try:
        name = file.filename.encode("ascii", "replace").decode().replace('"', "'").replace("\\", "_")
        disposition = {"content-disposition": f'attachment; filename="{name}"'}
        await exchange.start_download(file.bytes, b"application/octet-stream", disposition)
        left = file.bytes
        while left and not gone.done():
            block = await batches.threads.run(content.read, min(left, _BLOCK))
            if not block:
                raise OSError("the file is shorter than it was")
            left -= len(block)
            await exchange.send(block)
        if left:
            raise ClientGone
        await exchange.end(b"")
    except OSError as error:
        exchange.complete = True  # nothing more can be said: the connection breaks off, which says it
        raise errors.internal_error(f"A file can't be read: {reason(error)}.") from error
    finally:
        gone.cancel()
        content.close()


async def _receive(batches: Batches, store: FileStore, exchange: Exchange, form: UploadForm) -> FileObject:
    upload = await batches.threads.run(store.begin)
    try:
        async for part in exchange.parts(batches.max_file):
            form.feed(part)
            if form.pending >= _BLOCK:
                await batches.threads.run(upload.write, form.take())
        form.finish()
        await batches.threads.run(upload.write, form.take())
        said = (form.filename, form.purpose, form.expires_after, exchange.key.id)
        return await batches.threads.run(upload.commit, *said)
    finally:
        upload.discard()


def _file(store: FileStore, exchange: Exchange) -> FileObject:
    id = exchange.params["file_id"]
    found = store.get(id, exchange.key.id)
    if found is None:
        raise errors.unknown_id("File", id, "file_id")
    return found
