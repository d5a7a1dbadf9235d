import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
dataset = TensorDataset(images, torch.tensor(digits.target))
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

loader = DataLoader(dataset, batch_size=64, shuffle=True)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=8 * len(loader))
for _ in range(8):
    for inputs, target in loader:
        cross_entropy(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
