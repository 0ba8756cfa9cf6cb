//! FUSE requests, handed to the store.

use std::{
    ffi::OsStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use super::{
    gate::{Gate, PLUG},
    handles::{Handles, Open},
};
use crate::cluster::{Attributes, Kind, Store};

/// Nothing is cached: another node may have changed it.
const TTL: Duration = Duration::ZERO;
/// But the names of what is made up and of the links never change, ...
const FIXED_TTL: Duration = Duration::from_secs(3600);
/// ... and their size is no more than a hint, since reading goes past the page cache: agents read `.version` several times a second, and each question that the
/// kernel need not ask saves a switch of processes. A second is what a real mount has.
const HINT_TTL: Duration = Duration::from_secs(1);

type Result<T> = std::result::Result<T, nix::errno::Errno>;

pub(super) struct Pmxcfs {
    pub(super) store: Arc<Store>,
    /// The index of the node whose mount this is.
    pub(super) node: usize,
    pub(super) gate: Arc<Gate>,
    pub(super) group: u32,
    pub(super) handles: Handles,
}

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_i32(error as i32)
}

fn name(name: &OsStr) -> Result<&str> {
    name.to_str().ok_or(nix::errno::Errno::EINVAL)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Folder => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

impl Pmxcfs {
    fn attr(&self, attributes: &Attributes) -> FileAttr {
        FileAttr {
            ino: INodeNo(attributes.ino),
            size: attributes.size,
            blocks: attributes.size.div_ceil(512),
            atime: attributes.mtime,
            mtime: attributes.mtime,
            ctime: attributes.mtime,
            crtime: attributes.mtime,
            kind: file_type(attributes.kind),
            perm: attributes.mode,
            nlink: if attributes.kind == Kind::Folder { 2 } else { 1 },
            uid: 0,
            gid: self.group,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn me(&self) -> Option<usize> {
        Some(self.node)
    }

    fn entry(&self, made: Result<u64>, reply: ReplyEntry) {
        match made.and_then(|ino| self.store.attributes(self.node, ino)) {
            Ok(attributes) => reply.entry(&TTL, &self.attr(&attributes), Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open_file(&self, ino: u64) -> Result<u64> {
        Ok(self.handles.insert(Open::File(self.store.read(self.node, ino)?)))
    }

    /// What the file holds now, or held when it was opened if it is gone. What is made up stays as it was when opened.
    fn content(&self, ino: u64, handle: u64) -> Result<Arc<Vec<u8>>> {
        let opened = match self.handles.get(handle) {
            Some(Open::File(content)) => Some(content),
            _ => None,
        };
        if Store::is_made_up(ino) {
            return opened.ok_or(nix::errno::Errno::EBADF);
        }
        self.store.read(self.node, ino).or_else(|error| opened.ok_or(error))
    }
}

fn done(result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

fn size(value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| nix::errno::Errno::EFBIG)
}

impl Filesystem for Pmxcfs {
    fn lookup(&self, _: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEntry) {
        if child == PLUG {
            self.gate.pass();
            return reply.error(Errno::ENOENT);
        }
        match name(child).and_then(|child| self.store.lookup(self.node, parent.0, child)) {
            Ok(attributes) if Store::is_fixed(attributes.ino) => {
                reply.entry_with_ttls(&HINT_TTL, &FIXED_TTL, &self.attr(&attributes), Generation(0));
            }
            Ok(attributes) => reply.entry(&TTL, &self.attr(&attributes), Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.store.attributes(self.node, ino.0) {
            Ok(attributes) => reply.attr(if Store::is_fixed(ino.0) { &HINT_TTL } else { &TTL }, &self.attr(&attributes)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        new_size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            let now = self.store.attributes(self.node, ino.0)?;
            // Owner and mode follow from the path; what they are already may be set.
            let foreign = uid.is_some_and(|uid| uid != 0) || gid.is_some_and(|gid| gid != self.group && gid != 0);
            if foreign || mode.is_some_and(|mode| mode & 0o777 & !0o755 & !u32::from(now.mode) != 0) {
                return Err(nix::errno::Errno::EPERM);
            }
            if let Some(new_size) = new_size {
                self.store.truncate(self.me(), ino.0, size(new_size)?)?;
            } else if let Some(mtime) = mtime {
                self.store.touch(self.me(), ino.0, time(mtime))?;
            }
            // A lock whose removal was asked for is gone; the request went well all the same.
            Ok(self.store.attributes(self.node, ino.0).unwrap_or(now))
        };
        match set() {
            Ok(attributes) => reply.attr(&TTL, &self.attr(&attributes)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.store.link_target(self.node, ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(&self, _: &Request, parent: INodeNo, child: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        const TYPE: u32 = 0o170_000;
        const REGULAR: u32 = 0o100_000;
        if mode & TYPE != REGULAR {
            return reply.error(Errno::EPERM);
        }
        self.entry(name(child).and_then(|child| self.store.create(self.me(), parent.0, child)), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, child: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.entry(name(child).and_then(|child| self.store.mkdir(self.me(), parent.0, child)), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEmpty) {
        done(name(child).and_then(|child| self.store.unlink(self.me(), parent.0, child)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, child: &OsStr, reply: ReplyEmpty) {
        done(name(child).and_then(|child| self.store.rmdir(self.me(), parent.0, child)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        child: &OsStr,
        new_parent: INodeNo,
        new_child: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let rename = || self.store.rename(self.me(), parent.0, name(child)?, new_parent.0, name(new_child)?);
        done(rename(), reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, child: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let create = || {
            let ino = self.store.create(self.me(), parent.0, name(child)?)?;
            Ok((self.store.attributes(self.node, ino)?, self.open_file(ino)?))
        };
        match create() {
            Ok((attributes, handle)) => {
                reply.created(&TTL, &self.attr(&attributes), Generation(0), FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.content(ino.0, handle.0) {
            Ok(content) => {
                let begin = size(offset).map_or(content.len(), |offset| offset.min(content.len()));
                let end = content.len().min(begin.saturating_add(length as usize));
                reply.data(&content[begin..end]);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = size(offset).and_then(|offset| self.store.write(self.me(), ino.0, offset, data));
        match (written, u32::try_from(data.len())) {
            (Ok(()), Ok(length)) => reply.written(length),
            (Ok(()), Err(_)) => reply.error(Errno::EFBIG),
            (Err(error), _) => reply.error(errno(error)),
        }
    }

    fn release(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, _: Option<LockOwner>, _: bool, reply: ReplyEmpty) {
        self.handles.remove(handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.store.list(ino.0) {
            Ok(entries) => reply.opened(FileHandle(self.handles.insert(Open::Folder(Arc::new(entries)))), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(Open::Folder(entries)) = self.handles.get(handle.0) else { return reply.error(Errno::EBADF) };
        let dots = [(ino.0, FileType::Directory, "."), (ino.0, FileType::Directory, "..")].into_iter();
        let all = dots.chain(entries.iter().map(|entry| (entry.ino, file_type(entry.kind), entry.name.as_str())));
        for (next, (ino, kind, name)) in (1..).zip(all) {
            if next > offset && reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.handles.remove(handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        // 128 MiB, what a real one holds at most.
        reply.statfs(32768, 32700, 32700, 256_000, 255_000, 4096, 255, 4096);
    }
}
