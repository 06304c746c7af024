"""A small Hugging Face Hub on 127.0.0.1: what the real client asks to create, commit, list and download."""
import base64
import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Dict, Iterator, List, Optional, Tuple
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import ModelCard

GOOD_TOKEN = 'hf_good'


@dataclass
class File:
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """As the client compares it: of the content, by SHA-256 or as git names a blob."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b'blob %d\0' % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    private: bool
    refs: Dict[str, str] = field(default_factory=dict)
    commits: Dict[str, Dict[str, File]] = field(default_factory=dict)

    def resolve(self, revision: str) -> Optional[str]:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, ref: str, files: Dict[str, File]) -> str:
        oid = hashlib.sha1(repr((ref, len(self.commits))).encode()).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        return oid


class Hub(ThreadingHTTPServer):
    """Attributes:
        repos: By `owner/name`.
        blobs: Uploaded contents of LFS, by SHA-256.
        requests: Method and path of each request so far.
        stall: Part of a path at which a request is held: `stalled` is set, and nothing is stored or answered.
    """
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.repos: Dict[str, Repo] = {}
        self.blobs: Dict[str, bytes] = {}
        self.requests: List[Tuple[str, str]] = []
        self.stall = ''
        self.stalled = threading.Event()
        self.release = threading.Event()

    def put(self, repo: str, files: Dict[str, bytes], private: bool = False) -> None:
        """Store files as if someone had pushed them."""
        stored = {name: File(content, name.endswith('.safetensors')) for name, content in files.items()}
        self.blobs.update({file.oid: file.content for file in stored.values() if file.lfs})
        self.repos.setdefault(repo, Repo(private)).commit('main', stored)


class Answer(Exception):
    def __init__(self, status: int, body=b'', **headers: str):
        self.status, self.headers = status, headers
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server: Hub

    def log_message(self, *args):
        pass

    def respond(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.server.requests.append((self.command, unquote(url.path)))
        if self.server.stall and self.server.stall in url.path:
            self.server.stalled.set()
            self.server.release.wait(60)
            self.close_connection = True
            return
        try:
            self.route([unquote(p) for p in url.path.strip('/').split('/')], parse_qs(url.query), body)
            raise AssertionError(f'no answer to {self.command} {self.path}')
        except Answer as answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name.replace('_', '-'), value)
            if 'Content_Length' not in answer.headers:
                self.send_header('Content-Length', str(len(answer.body)))
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def authorize(self, write: bool = False) -> bool:
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        if token and token != GOOD_TOKEN:
            raise Answer(401, dict(error='Invalid credentials in Authorization header'),
                         X_Error_Message='Invalid credentials in Authorization header')
        if write and not token:
            raise Answer(401, dict(error='Unauthorized'), X_Error_Message='Invalid username or password.')
        return bool(token)

    def open_repo(self, name: str) -> Repo:
        known = self.authorize()
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not known):
            raise Answer(404 if known else 401, dict(error='Repository not found'), X_Error_Code='RepoNotFound',
                         X_Error_Message='Repository not found')
        return repo

    def open_commit(self, repo: Repo, revision: str) -> str:
        commit = repo.resolve(revision)
        if commit is None:
            raise Answer(404, dict(error='Invalid rev id'), X_Error_Code='RevisionNotFound',
                         X_Error_Message=f'Invalid rev id: {revision}')
        return commit

    def route(self, parts, query, body) -> None:
        if parts[0] == 'lfs':
            self.lfs_object(parts[1], body)
        elif parts[:3] == ['api', 'repos', 'create']:
            self.create_repo(json.loads(body))
        elif parts == ['api', 'validate-yaml']:
            self.validate_card(json.loads(body))
        elif parts == ['api', 'whoami-v2']:
            self.authorize(write=True)
            raise Answer(200, dict(name='me', type='user', orgs=[]))
        elif parts[:2] == ['api', 'models']:
            name, action, rest = '/'.join(parts[2:4]), (parts[4:5] or [''])[0], '/'.join(parts[5:])
            getattr(self, f'models_{action or "info"}')(name, rest, query, body)
        elif len(parts) > 2 and parts[1].endswith('.git') and parts[2:] == ['info', 'lfs', 'objects', 'batch']:
            self.lfs_batch(json.loads(body))
        elif len(parts) > 4 and parts[2] == 'resolve':
            self.resolve('/'.join(parts[:2]), parts[3], '/'.join(parts[4:]))
        raise Answer(404, dict(error=f'unknown route {self.path}'))

    def create_repo(self, request) -> None:
        self.authorize(write=True)
        name = f'{request.get("organization") or "me"}/{request["name"]}'
        answer = dict(url=f'{self.server.url}/{name}', id=name)
        if name in self.server.repos:
            raise Answer(409, dict(answer, error='You already created this model repo'))
        repo = self.server.repos[name] = Repo(request.get('private') or request.get('visibility') == 'private')
        repo.commit('main', {'.gitattributes': File(b'*.safetensors filter=lfs', False)})
        raise Answer(200, answer)

    def validate_card(self, request) -> None:
        try:
            card = ModelCard(request['content'])
            if not card.data.license:
                raise ValueError('license is missing')
        except Exception as error:
            raise Answer(400, dict(errors=[dict(message=str(error))], warnings=[])) from error
        raise Answer(200, dict(errors=[], warnings=[]))

    def models_info(self, name, revision, query, body) -> None:
        repo = self.open_repo(name)
        commit = self.open_commit(repo, revision or 'main')
        siblings = [dict(rfilename=path) for path in repo.commits[commit]]
        raise Answer(200, dict(id=name, sha=commit, private=repo.private, siblings=siblings, tags=[], downloads=0))

    models_revision = models_info

    def models_tree(self, name, rest, query, body) -> None:
        repo = self.open_repo(name)
        files = repo.commits[self.open_commit(repo, rest.split('/')[0] or 'main')]
        entries = []
        for path, file in files.items():
            entry = dict(type='file', path=path, size=len(file.content), oid=file.oid)
            if file.lfs:
                entry.update(oid='0' * 40, lfs=dict(oid=file.oid, size=len(file.content), pointerSize=134))
            entries.append(entry)
        raise Answer(200, entries)

    def models_branch(self, name, branch, query, body) -> None:
        self.authorize(write=True)
        repo = self.open_repo(name)
        if branch in repo.refs:
            raise Answer(409, dict(error='Reference already exists'))
        repo.refs[branch] = repo.refs['main']
        raise Answer(201, {})

    def models_preupload(self, name, revision, query, body) -> None:
        self.authorize(write=True)
        repo = self.open_repo(name)
        there = repo.commits[self.open_commit(repo, revision)]
        raise Answer(200, dict(files=[
            dict(path=f['path'], uploadMode='lfs' if f['path'].endswith('.safetensors') else 'regular',
                 shouldIgnore=False, oid=there[f['path']].oid if f['path'] in there else None)
            for f in json.loads(body)['files']]))

    def lfs_batch(self, request) -> None:
        self.authorize(write=True)
        objects = []
        for item in request['objects']:
            if item['oid'] not in self.server.blobs:
                item['actions'] = dict(upload=dict(href=f'{self.server.url}/lfs/{item["oid"]}'))
            objects.append(item)
        raise Answer(200, dict(transfer='basic', objects=objects))

    def lfs_object(self, oid, body) -> None:
        if self.command == 'PUT':
            assert hashlib.sha256(body).hexdigest() == oid
            self.server.blobs[oid] = body
            raise Answer(200)
        raise Answer(200, self.server.blobs[oid])

    def models_commit(self, name, revision, query, body) -> None:
        self.authorize(write=True)
        repo = self.open_repo(name)
        files = dict(repo.commits[self.open_commit(repo, revision)])
        for line in map(json.loads, body.decode().splitlines()):
            value = line['value']
            if line['key'] == 'file':
                files[value['path']] = File(base64.b64decode(value['content']), False)
            elif line['key'] == 'lfsFile':
                files[value['path']] = File(self.server.blobs[value['oid']], True)
            elif line['key'] == 'deletedFile':
                del files[value['path']]
        answer = {}
        if query.get('create_pr'):
            revision = f'refs/pr/{1 + sum(r.startswith("refs/pr/") for r in repo.refs)}'
            answer['pullRequestUrl'] = f'{self.server.url}/{name}/discussions/{revision.split("/")[-1]}'
        commit = repo.commit(revision, files)
        raise Answer(200, dict(
            answer, success=True, commitOid=commit, commitUrl=f'{self.server.url}/{name}/commit/{commit}'))

    def resolve(self, name, revision, path) -> None:
        repo = self.open_repo(name)
        commit = self.open_commit(repo, revision)
        file = repo.commits[commit].get(path)
        if file is None:
            raise Answer(404, b'Entry not found', X_Error_Code='EntryNotFound', X_Error_Message='Entry not found')
        headers = dict(X_Repo_Commit=commit, ETag=f'"{file.oid}"', Accept_Ranges='bytes')
        if file.lfs:
            headers.update(X_Linked_Etag=f'"{file.oid}"', X_Linked_Size=str(len(file.content)))
        raise Answer(200, file.content, Content_Length=str(len(file.content)), **headers)


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        hub.shutdown()
        hub.server_close()
